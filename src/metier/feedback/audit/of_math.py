"""Cases for the verifier "math": right answers, rewritten and broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metier.feedback.audit.cases import Case, talk

__all__ = ["cases"]

# A right answer, other spellings of it, and answers near it that are wrong.
_ANSWERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("7", ("7.0", "07", "14/2", "+7"), ("-7", "8", "77", "0.7", "1/7")),
    ("42", ("42.00", r"\frac{84}{2}", "42 apples"), ("-42", "41", "24", "420", "4.2", "42000")),
    ("-3", ("−3", "-3.0", r"-\frac{6}{2}"), ("3", "-2", "-33", "1/3")),
    ("1250", ("1,250", "1 250", "1{,}250", r"1.25 \times 10^{3}", "1.25e3"), ("125", "12500", "1.250", "1251")),
    ("0.5", ("1/2", r"\frac12", r"\dfrac{1}{2}", ".5", "50%"), ("5", "0.05", "0.5%", "-0.5", "2")),
    (r"\frac{3}{4}", ("0.75", "3/4", r"\tfrac{3}{4}", "6/8"), ("4/3", "0.7", "-3/4", "3")),
    (r"\frac{1}{3}", ("1/3", "2/6"), ("0.333", "0.3333333333", "3", "-1/3")),
    ("1.5e3", ("1500", "1,500"), ("15000", "1.5", "150")),
    ("25%", ("0.25", "25", r"25\%", "25 percent"), ("2.5", "75%", "52%")),
    (".5%", ("0.5%", r".5\%", "0.5", ".005", "0.5 percent"), ("5", "50%", "0.05", "-.5%")),
    ("0.005", (".5%", r"\frac{1}{200}"), ("0.5", ".05", "5%")),
    (
        "5 million",
        ("5000000", "5,000,000", r"5 \times 10^6", r"5\text{ million}", "5 million people"),
        ("5", "5 billion", "500,000", "-5 million", "5 thousand"),
    ),
    ("3 dozen", ("36", "3 dozen eggs", "36 eggs"), ("3", "12", "3 million", "360")),
    ("36", ("3 dozen", "36.0"), ("3 hundred", "2 dozen", "63")),
    (r"\pm 2", ("2, -2", r"x = \pm 2", "-2 and 2"), ("2", "-2", r"\pm 3", "2, 2")),
    ("x > 3", ("3 < x", "x>3"), ("x < 3", "3 > x", r"x \ge 3")),
    ("$18", ("18", "18.00", r"\$18", "18 dollars"), ("81", "-18", "1.8", "$180")),
    (r"\sqrt{2}", ("√2", r"\sqrt2", r"\frac{2}{\sqrt{2}}", r"2^{1/2}"), ("1.41421356", r"-\sqrt{2}", "2", r"\sqrt{3}")),
    (r"2\pi", ("2π", r"\pi \cdot 2", r"\pi + \pi"), ("6.2832", r"\pi", r"\pi^2", "2")),
    (r"1-\frac{1}{e}", (r"1 - 1/e", r"\frac{e-1}{e}"), (r"1+\frac{1}{e}", r"\frac{1}{e}", "1")),
    ("x^2+2x+1", ("(x+1)^2", "1+2x+x^2"), ("x^2-2x+1", "x^2+2x", "(x-1)^2")),
    (r"\frac{x+1}{2}", (r"\frac{1}{2}(x+1)", r"\frac{x}{2}+\frac{1}{2}"), (r"\frac{x-1}{2}", r"x+\frac{1}{2}")),
    ("x=5", ("5", "x = 5.0"), ("-5", "x = 6", "x = -5")),
    ("(1, 2)", ("(1,2)", r"\left(1, 2\right)", "(1.0, 2)"), ("(2, 1)", "(1, 3)", "(1, 2, 3)", "1")),
    ("1, 2, 3", ("3, 2, 1", r"\{1, 2, 3\}", "1, 2 and 3"), ("1, 2", "1, 2, 4", "1, 2, 3, 4", "6")),
    ("[0, 1)", (r"\left[0, 1\right)", "[0,1)"), ("(0, 1)", "[0, 1]", "(0, 1]", "[1, 0)")),
    (r"(-\infty, 2]", (r"\left(-\infty, 2\right]", "(-∞, 2]"), (r"(-\infty, 2)", r"(-\infty, -2]", r"[2, \infty)")),
    ("Monday", ("monday", r"\text{Monday}", "Monday."), ("Tuesday", "Sunday", "1")),
    ("no solution", ("No solution", r"\text{no solution}"), ("one solution", "0", "no")),
    ("B", ("(B)", r"\text{B}", "b"), ("A", "(C)", "BC")),
    ("840", ("840.", "840 km"), ("480", "8400", "-840", "84")),
)
_WRITTEN = (
    r"So it is \boxed{{{}}}.",
    r"\boxed {{{}}}",
    r"Hence $\fbox{{{}}}$.",
    "After some work: <answer>{}</answer>",
    "The answer is {}",
    "Some steps.\n#### {}",
    "**Final answer:** {}",
)


def cases() -> list[Case]:
    """All cases, always the same."""
    return [*_all(), *_single()]


def _all() -> Iterator[Case]:
    for answer, same, wrong in _ANSWERS:
        params: dict[str, Any] = {"answer": answer}
        for form in _WRITTEN:
            yield Case(kind="gold", params=params, response=form.format(answer), passes=True, origin="gold")
        for number, other in enumerate(same):
            form = _WRITTEN[number % 4]
            yield Case(kind="rewritten", params=params, response=form.format(other), passes=True)
        first = wrong[0]
        yield Case(kind="twice", params=params, response=rf"\boxed{{{answer}}}, so \boxed{{{answer}}}", passes=True)
        yield Case(
            kind="corrected", params=params, response=rf"\boxed{{{first}}} Wait, no: \boxed{{{answer}}}", passes=True
        )
        for number, other in enumerate(wrong):
            form = _WRITTEN[number % len(_WRITTEN)]
            yield Case(kind="near miss", params=params, response=form.format(other), passes=False)
        yield from _tricks(params, answer, first)
        yield from talk(params)


def _tricks(params: dict[str, Any], answer: str, wrong: str) -> Iterator[Case]:
    """Ways to have the answer in the text, and not as the answer."""
    for kind, text in (
        ("hedge", rf"\boxed{{{answer}}} or maybe \boxed{{{wrong}}}"),
        ("hedge", rf"\boxed{{{answer}}} or \boxed{{{wrong}}}"),
        ("hedge", rf"\boxed{{{wrong}}}, \boxed{{{answer}}}"),
        ("hedge", rf"\boxed{{{answer} \text{{ or }} {wrong}}}"),
        ("hedge", f"The answer is {answer} or {wrong}."),
        ("exploit", rf"It could be {answer}. \boxed{{}}"),
        ("exploit", f"{answer} <answer></answer>"),
        ("exploit", rf"{answer} is tempting, but \boxed{{{wrong}}}"),
        ("exploit", rf"\boxed{{{answer}}} Actually, that is a mistake, it is \boxed{{{wrong}}}"),
        ("exploit", rf"\boxed{{{answer}}} Wait, it is {wrong}, x = {wrong}, 5."),
        ("truncated", rf"\boxed{{{answer}}} and once more \boxed{{"),
        ("truncated", rf"We get \boxed{{{answer}"),
        ("truncated", f"We get <answer>{answer}"),
    ):
        yield Case(kind=kind, params=params, response=text, passes=False)


def _single() -> Iterator[Case]:
    """Single cases that have fooled verifiers, or hung them."""
    seven, deep = {"answer": "7"}, "{" * 5000
    numeric = {"answer": r"\sqrt{2}", "mode": "numeric"}
    half: dict[str, Any] = {"answer": r"\frac{1}{2}"}
    for params, text, passes in (
        (half, r"\boxed\frac12", True),
        (half, r"So $\boxed\frac{1}{2}$.", True),
        (half, r"\boxed\frac13", False),
        (half, r"\boxed{½}", True),
        (half, r"\boxed{1⁄2}", True),
        (half, r"\boxed{\frac12}, or 0.5.", True),
        (half, "The answer is 1/2, or 50%.", True),
        (half, "The answer is 1/2, or 5%.", False),
        ({"answer": "-7"}, r"$-\boxed{7}$", True),
        (seven, r"$-\boxed{7}$", False),
        (seven, r"\boxed{7} million", False),
        (seven, r"\boxed{7} \times 10^{3}", False),
        ({"answer": "7 million"}, r"\boxed{7} million", True),
        (seven, r"\boxed{3+4=7}", True),
        (seven, r"\boxed{3+4=8}", False),
        (seven, r"\boxed{7=8-2}", False),
        (seven, r"\boxed{\approx 7}", True),
        (seven, "<answer>\\boxed{6} \\boxed{7}</answer>", False),
        (seven, r"\boxed{7}. That is false; it is 8.", False),
        (seven, r"\boxed{7}. Hold on, 8.", False),
        ({"answer": "B"}, r"\boxed{\textbf{(B)}\ 12}", True),
        ({"answer": "B"}, r"\boxed{\textbf{(B)}\ 12 or (C)}", False),
        ({"answer": "-5"}, "\\boxed{\u20115}", True),
        ({"answer": "5"}, r"\boxed{⁵}", False),
        ({"answer": "7", "mode": "numeric"}, r"\boxed{\infty}", False),
        ({"answer": "7", "mode": "numeric"}, r"\boxed{-\infty}", False),
        ({"answer": "7", "mode": "numeric"}, r"\boxed{\frac{1}{0}}", False),
        (numeric, r"\boxed{\infty}", False),
        (numeric, r"\boxed{\frac{1}{0}}", False),
        (numeric, r"\boxed{nan}", False),
        (seven, r"\boxed{" * 20_000, False),
        (seven, "<answer>" * 20_000, False),
        ({"answer": "5"}, r"\boxed" + deep + "4" + "}" * 5000, False),
        (seven, r"\boxed{9^{9^{9^{9^{9}}}}}", False),
        (seven, r"\boxed{" + "7" * 100_000 + "}", False),
        (seven, r"\boxed{1e999999999}", False),
        (seven, r"\boxed{" + "+".join(["1"] * 3000) + "}", False),
        (seven, " ".join(map(str, range(2000))), False),
        (seven, r"\boxed{0} \boxed{1} \boxed{2} \boxed{3} \boxed{4} \boxed{5} \boxed{6} \boxed{7} \boxed{8}", False),
        (seven, r"\boxed{\text{the right answer}}", False),
        (seven, r"\boxed{x}", False),
        (seven, r"\boxed{?}", False),
        (seven, r"\boxed{\infty}", False),
        (seven, r"\boxed{7=8}", False),
        (seven, "The answer is not 7.", False),
        ({"answer": r"1-1/\mathrm{e}"}, r"\boxed{1+1/\mathrm{e}}", False),
        (numeric, r"\boxed{1.41421356}", True),
        (numeric, r"\boxed{1.42}", False),
        ({"answer": "3.14159", "mode": "numeric", "tolerance": 0.01}, r"\boxed{3.14}", True),
        ({"answer": "3.14159", "mode": "numeric", "tolerance": 0.001}, r"\boxed{3.2}", False),
    ):
        yield Case(kind="rewritten" if passes else "exploit", params=dict(params), response=text, passes=passes)
