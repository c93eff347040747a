"""Names of customers: one list for demo and train, another for the held-out rungs."""

from __future__ import annotations

import random

__all__ = ["draw_name"]

_FIRST = (
    "Mara", "Tom", "Priya", "Jonas", "Alice", "Omar", "Nina", "Peter", "Lucia", "Ben", "Yara", "Hugo", "Clara", "Samir",
    "Emma", "Felix", "Rosa", "Daniel", "Ines", "Victor", "Hanna", "Leo", "Grace", "Ivan", "Julia", "Marcus", "Elena",
    "Adam", "Sofia", "Karl", "Ruth", "Noah", "Amina", "Paul", "Vera", "Simon", "Lena", "Oscar", "Dora", "Rafael",
    "Helen", "Max", "Nadia", "George", "Iris", "Henry", "Olga", "Luke", "Tessa", "Carlos", "Aaron", "Abdul", "Agnes",
    "Aisha", "Albert", "Alma", "Amir", "Andrea", "Anton", "Arjun", "Barbara", "Bashir", "Beatrice", "Bianca", "Boris",
    "Brenda", "Bruno", "Camila", "Cedric", "Chiara", "Chloe", "Conrad", "Dana", "Darius", "Diego", "Dimitri", "Dolores",
    "Edith", "Edgar", "Eleni", "Elias", "Elsa", "Enzo", "Erika", "Esther", "Ethan", "Fatima", "Fiona", "Florian",
    "Frida", "Gabriel", "Gemma", "Gloria", "Greta", "Gustav", "Hamid", "Harriet", "Hassan", "Hector", "Hilda", "Imran",
    "Ingrid", "Irene", "Isabel", "Jasper", "Javier", "Jelena", "Joel", "Josefa", "Judith", "Kamal", "Karin", "Kira",
    "Klaus", "Lars", "Layla", "Leila", "Lionel", "Lorena", "Lukas", "Mabel", "Magnus", "Malik", "Manuel", "Margit",
    "Marina", "Mario", "Martha", "Mateo", "Maya", "Mehmet", "Miriam", "Mona", "Nabil", "Naomi", "Natalia", "Nelson",
    "Nikolai", "Noor", "Oliver", "Ophelia", "Otis", "Pablo", "Pamela", "Petra", "Philip", "Quentin", "Rachel", "Ramon",
    "Rebecca", "Ricardo", "Rita", "Roman", "Ronja", "Rupert", "Sabine", "Salma", "Sandro", "Selma", "Sergio", "Silvia",
    "Sven", "Tamara", "Tariq", "Teresa", "Tibor", "Tobias", "Ursula", "Valentin", "Viktor", "Viola", "Wanda", "Wilma",
    "Xavier", "Yasmin", "Yusuf", "Zara", "Zoltan",
)  # fmt: skip
_LAST = (
    "Lind", "Baker", "Shah", "Weber", "Cole", "Haddad", "Novak", "Marsh", "Romero", "Fisher", "Okafor", "Lang", "Reed",
    "Aziz", "Stone", "Bauer", "Vega", "Moss", "Costa", "Hunt", "Berg", "Price", "Ford", "Petrov", "Kane", "Holt",
    "Duarte", "Frost", "Ramos", "Vogel", "Dean", "Walsh", "Diallo", "Grant", "Sokol", "Nash", "Meyer", "Quinn", "Papp",
    "Silva", "Barnes", "Roth", "Karim", "Lowe", "Field", "Brandt", "Orlov", "Page", "Wolfe", "Ortiz", "Abbott",
    "Acosta", "Adler", "Ahmed", "Albers", "Alvarez", "Amsel", "Ashby", "Babic", "Bajwa", "Bennett", "Bianchi", "Bishop",
    "Blanc", "Booth", "Boyd", "Brandao", "Brooks", "Bruun", "Burns", "Cabral", "Calder", "Carver", "Cervera", "Chandra",
    "Clarke", "Conti", "Crane", "Curtis", "Dahl", "Daly", "Demir", "Desai", "Dietrich", "Dimas", "Drake", "Dubois",
    "Dunn", "Ebner", "Ellis", "Engel", "Fabre", "Falk", "Faulkner", "Ferrari", "Flynn", "Foster", "Fuchs", "Gallo",
    "Garner", "Gerber", "Gibson", "Gomes", "Greco", "Hansen", "Harper", "Hassan", "Hayes", "Heller", "Hidalgo", "Hoang",
    "Horvat", "Hughes", "Ibarra", "Iyer", "Jacobs", "Janik", "Jensen", "Joshi", "Kaplan", "Kemp", "Khalil", "Kimura",
    "Klein", "Kovacs", "Kramer", "Kumar", "Lambert", "Larsen", "Leone", "Lewis", "Lindgren", "Lorenz", "Madsen",
    "Malone", "Marino", "Mbeki", "Mercer", "Mishra", "Moreau", "Morgan", "Murray", "Nagy", "Navarro", "Nielsen",
    "Norris", "Obi", "Olsen", "Osborne", "Palmer", "Parra", "Pereira", "Pham", "Pope", "Prado", "Rahman", "Rao",
    "Renner", "Rhodes", "Rivas", "Rossa", "Russo", "Sandoval", "Santos", "Sato", "Schmid", "Serrano", "Sinclair",
    "Sorensen", "Spencer", "Stark", "Suarez", "Suzuki", "Szabo", "Taylor", "Thorne", "Torres", "Turner", "Ueda",
    "Urban", "Valdez", "Varga", "Vaughn", "Vidal", "Wagner", "Walker", "Webb", "Weiss", "Whitman", "Wong", "Wright",
    "Yamada", "York", "Young", "Zeman", "Zhang", "Zimmer",
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
