"""Cases for the verifier "exact"."""

from __future__ import annotations

from metier.feedback.audit.cases import Case, talk

__all__ = ["cases"]

_ANSWERS = ("Paris", "61.0 cm", "yes", "42", "The red one.", "a\nb", "naïve café", "-", "x = 5", "[1, 2]", "true", "0")


def cases() -> list[Case]:
    """All cases, always the same."""
    made = []
    for answer in _ANSWERS:
        params = {"answer": answer}
        made.append(Case(kind="gold", params=params, response=answer, passes=True, origin="gold"))
        for text in (f" {answer}", f"{answer}\n", f"\n{answer} \n", f"<think>Not that.</think>\n{answer}"):
            made.append(Case(kind="rewritten", params=params, response=text, passes=True))
        for text in (
            answer + ".",
            f"<think>{answer}</think>No.",
            f"It is {answer}",
            answer[:-1],
            answer + answer,
            f"{answer} {answer}",
            f"{answer} or not",
        ):
            made.append(Case(kind="near miss", params=params, response=text, passes=False))
        if answer.swapcase() != answer:
            made.append(Case(kind="near miss", params=params, response=answer.swapcase(), passes=False))
        made += talk(params)
    return made
