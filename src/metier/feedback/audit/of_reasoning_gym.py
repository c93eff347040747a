"""Cases for the verifier "reasoning_gym": the answers that its own datasets give."""

from __future__ import annotations

from metier.feedback.audit.cases import Case, talk
from metier.tasks.reasoning_gym import OPEN, SHUT, entry_of

__all__ = ["cases"]

_DATASETS = ("chain_sum", "gcd", "letter_counting", "number_sorting", "spell_backward", "leg_counting")


def cases() -> list[Case]:
    """All cases, always the same for one version of the package."""
    from importlib.metadata import version

    made = []
    for dataset in _DATASETS:
        for place in range(6):
            params = {"dataset": dataset, "config": {}, "seed": 0, "place": place, "version": version("reasoning-gym")}
            entry = entry_of(dataset, "{}", 0, place)
            prompt, answer = str(entry["question"]), str(entry["answer"])
            other = str(entry_of(dataset, "{}", 0, place + 6)["answer"])
            right = (
                f"{OPEN}{answer}{SHUT}",
                f"I count.\n{OPEN} {answer} {SHUT}",
                f"{OPEN}x{SHUT} no, {OPEN}{answer}{SHUT}",
            )
            wrong = (answer, f"{OPEN}{SHUT}{answer}", f"{OPEN}{answer}", f"{OPEN}{answer} or not{SHUT}")
            made.append(Case(kind="gold", params=params, response=right[0], passes=True, origin="gold", prompt=prompt))
            made += [
                Case(kind="rewritten", params=params, response=text, passes=True, prompt=prompt) for text in right[1:]
            ]
            made += [Case(kind="exploit", params=params, response=text, passes=False, prompt=prompt) for text in wrong]
            if other != answer:
                text = f"{OPEN}{other}{SHUT}"
                made.append(Case(kind="near miss", params=params, response=text, passes=False, prompt=prompt))
            made += talk(params, prompt)
    return made
