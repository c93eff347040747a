"""Names of customers: one list for demo and train, another for the held-out rungs."""

from __future__ import annotations

import random

__all__ = ["draw_name"]

_FIRST = (
    "Mara", "Tom", "Priya", "Jonas", "Alice", "Omar", "Nina", "Peter", "Lucia", "Ben", "Yara", "Hugo", "Clara", "Samir",
    "Emma", "Felix", "Rosa", "Daniel", "Ines", "Victor", "Hanna", "Leo", "Grace", "Ivan", "Julia", "Marcus", "Elena",
    "Adam", "Sofia", "Karl", "Ruth", "Noah", "Amina", "Paul", "Vera", "Simon", "Lena", "Oscar", "Dora", "Rafael",
    "Helen", "Max", "Nadia", "George", "Iris", "Henry", "Olga", "Luke", "Tessa", "Carlos",
)  # fmt: skip
_LAST = (
    "Lind", "Baker", "Shah", "Weber", "Cole", "Haddad", "Novak", "Marsh", "Romero", "Fisher", "Okafor", "Lang", "Reed",
    "Aziz", "Stone", "Bauer", "Vega", "Moss", "Costa", "Hunt", "Berg", "Price", "Ford", "Petrov", "Kane", "Holt",
    "Duarte", "Frost", "Ramos", "Vogel", "Dean", "Walsh", "Diallo", "Grant", "Sokol", "Nash", "Meyer", "Quinn", "Papp",
    "Silva", "Barnes", "Roth", "Karim", "Lowe", "Field", "Brandt", "Orlov", "Page", "Wolfe", "Ortiz",
)  # fmt: skip
_FIRST_HELD = (
    "Astrid", "Colin", "Deepa", "Emil", "Farah", "Gavin", "Heidi", "Igor", "Joan", "Kofi", "Laura", "Milo", "Nora",
    "Otto", "Paula", "Robin", "Stella", "Theo", "Uma", "Walter",
)  # fmt: skip
_LAST_HELD = (
    "Archer", "Blum", "Castro", "Doyle", "Eriksen", "Farrell", "Gupta", "Hale", "Ivers", "Jansen", "Keller", "Lopez",
    "Mensah", "Nolan", "Osman", "Perry", "Rossi", "Sharp", "Tran", "West",
)  # fmt: skip


def draw_name(rng: random.Random, held: bool) -> str:
    """A first and a last name."""
    return f"{rng.choice(_FIRST_HELD if held else _FIRST)} {rng.choice(_LAST_HELD if held else _LAST)}"
