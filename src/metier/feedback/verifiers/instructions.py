"""The verifier "instructions": constraints that can be checked, by the ids of IFEval and IFBench.

The checks are those of the package if-verifiable. Each id is checked as often as it stands in the
list, with the arguments in its place of `kwargs`; an id that is not known, arguments that a check does
not take, and arguments that it would draw at random because they are not given make the episode
unscored, as does a check that needs data which is not on the machine (NLTK's punkt).

`strict` checks what was said; `loose` takes it also without its first or last line and without
asterisks, as the IFEval paper does (Zhou et al. 2023, arXiv:2311.07911). A response of one character
satisfies a good part of all constraints that only forbid; `min_words` guards against that.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Mapping
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, last_words, unscored
from metier.records.types import Task

__all__ = ["Instructions"]


class Instructions(Described):
    """All constraints are kept, or not."""

    name = "instructions"
    version = "1"
    parameters: ClassVar = {
        "instruction_id_list": "ids of IFEval or IFBench",
        "kwargs": "a list of arguments for each of them",
        "mode": '"strict" (default) or "loose"',
        "min_words": "words that a response must have at least; default 1",
    }
    seconds = 20.0

    def prepare(self) -> None:
        """Import the checks."""
        _registry("ifeval")

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where every constraint is kept, else 0; `parts` has each by id and place."""
        ids, given = params.get("instruction_id_list"), params.get("kwargs")
        mode, least = params.get("mode", "strict"), params.get("min_words", 1)
        if not isinstance(ids, (list, tuple)) or not ids:
            return unscored('the parameter "instruction_id_list" is missing or empty')
        given = [{}] * len(ids) if given is None else given
        if not isinstance(given, (list, tuple)) or len(given) != len(ids):
            return unscored('"kwargs" has not as many entries as "instruction_id_list"')
        if mode not in ("strict", "loose"):
            return unscored(f'"mode" is "strict" or "loose", not {mode!r}')
        said = last_words(attempt)
        prompt = next((m.content for m in reversed(task.messages) if m.role == "user"), "")
        parts: dict[str, float] = {}
        for place, (name, arguments) in enumerate(zip(ids, given, strict=True), 1):
            known = _registry("ifeval") if name in _registry("ifeval") else _registry("ifbench")
            if name not in known:
                return unscored(f"there is no instruction {name!r}")
            kept, why = _kept(known[name](name), dict(arguments or {}), prompt, said, loose=mode == "loose")
            if why:
                return unscored(f"{name}: {why}")
            parts[f"{place} {name}"] = float(kept)
        if len(said.split()) < least:
            return Verdict(score=0.0, reason=f"it has less than {least} words", parts=dict.fromkeys(parts, 0.0))
        missed = [name for name, kept in parts.items() if not kept]
        reason = "all constraints are kept" if not missed else "not kept: " + ", ".join(missed)
        return Verdict(score=float(not missed), reason=reason, parts=parts)


@functools.cache
def _registry(which: str) -> Mapping[str, Any]:
    """The checks by id. IFBench's look for NLTK's data on the network when they are imported, so they wait."""
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # else the language of a short text is a matter of luck
    if which == "ifbench":
        from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT
    else:
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    found: Mapping[str, Any] = INSTRUCTION_DICT
    return found


def _kept(checker: Any, arguments: dict[str, Any], prompt: str, said: str, *, loose: bool) -> tuple[bool, str]:
    """Whether one constraint is kept, or why that cannot be said."""
    arguments = {name: value for name, value in arguments.items() if value is not None}
    takes = inspect.signature(checker.build_description).parameters
    unknown = sorted(arguments.keys() - takes.keys())
    if unknown:
        return False, f"it takes no argument {unknown[0]!r}"
    if "prompt" in takes and "prompt" not in arguments:
        arguments["prompt"] = prompt
    before = random.getstate()
    try:
        checker.build_description(**arguments)
        if random.getstate() != before:
            missing = sorted(takes.keys() - arguments.keys())
            return False, f"it would draw at random what is not given or cannot be meant: {', '.join(missing or takes)}"
        variants = _variants(said) if loose else [said]
        return any(bool(one.strip()) and bool(checker.check_following(one)) for one in variants), ""
    except LookupError as error:  # NLTK's way to say that its data is not there
        if "nltk" in str(error).lower():
            return False, "NLTK's data for it is not on this machine (python -m nltk.downloader punkt punkt_tab)"
        return False, f"{type(error).__name__}: {error}"
    except Exception as error:  # of somebody else's check, whatever it raises
        return False, f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        random.setstate(before)


def _variants(said: str) -> list[str]:
    lines = said.split("\n")
    cut = [said, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    return [one.strip() for part in cut for one in (part, part.replace("*", ""))]
