r"""The verifier "math": the final answer of a response equals the right one.

The final answer is what is marked as such: `\boxed{…}`, `\fbox{…}`, `<answer>…</answer>`, "#### …", or a line
that begins "Answer:" or says "the answer is"; a response of one short line is an answer as it stands. Of
several marks the last counts, as in "\boxed{41} Wait, no: \boxed{42}"; but a response that offers a choice
("\boxed{42} or maybe \boxed{41}"), goes on to doubt its answer, or is cut off inside a mark is wrong.

Two answers are equal in the mode "exact" where they are the same number, expression, equation, interval,
list or word: 0.5 is 1/2, 5 million is 5000000, and 1.41421356 is not the root of 2. In the mode "numeric" they
may be off by `tolerance`. Units must agree where both have one; what is still a question (a sum, an
integral, 43 - 1) is no answer. A percentage is right as its number (0.5% as 0.5) and as its share (0.005); what
is no percentage may have a percent sign only above 1, for 0.5% is not 0.5. A sign, a power of ten or a
"million" beside a box belongs to what it says. Numbers, fractions, percentages, lists and words are compared
here; what is left goes to latex2sympy and SymPy, in a process with a deadline. What neither can read is
compared as text, white space aside.

Sources: Hendrycks et al. 2021 (arXiv:2103.03874) for the marks; latex2sympy2-extended, the parser of
Math-Verify, for LaTeX.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, last_words, unscored
from metier.records.types import Task

__all__ = ["Math", "final_answer"]

_LONGEST = 2_000  # characters of an answer that are looked at
_DEEPEST = 40  # brackets within brackets
_TEXT = 200_000  # characters of a response that are searched, its last ones
_MOST_DIGITS = 400  # of a number that is computed with


class Math(Described):
    """Right or wrong; unscored where the right answer itself cannot be read."""

    name = "math"
    version = "2"
    parameters: ClassVar = {
        "answer": "the right answer: a number, LaTeX or words",
        "mode": '"exact" (default) or "numeric"',
        "tolerance": "relative, for numeric; default 1e-6",
    }
    seconds = 5.0
    late_is_wrong = True

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where the final answer is the right one, else 0."""
        gold, mode, tolerance = params.get("answer"), params.get("mode", "exact"), params.get("tolerance", 1e-6)
        if gold is None or isinstance(gold, bool) or not str(gold).strip():
            return unscored('the parameter "answer" is missing or empty')
        if mode not in ("exact", "numeric"):
            return unscored(f'"mode" is "exact" or "numeric", not {mode!r}')
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
            return unscored(f'"tolerance" is a number from 0 to below 1, not {tolerance!r}')
        marked, why = final_answer(str(gold), bare=True)
        right = None if marked is None else _read(marked)
        if right is None or (right.number is None and not right.parts and not _readable(right)):
            return unscored(f"the answer {str(gold)[:100]!r} cannot be read{': ' + why if why else ''}")
        try:
            return self._judged(str(gold), right, last_words(attempt)[-_TEXT:], float(tolerance), mode)
        except Exception as error:  # the right answer has been read: what cannot be judged now is the response's fault
            reason = f"the answer cannot be judged: {type(error).__name__}"
            return Verdict(score=0.0, reason=reason, parts={"answered": 1.0, "right": 0.0})

    def _judged(self, gold: str, right: _Value, text: str, tolerance: float, mode: str) -> Verdict:
        said, why = final_answer(text)
        if said is None:
            return Verdict(score=0.0, reason=why, parts={"answered": 0.0, "right": 0.0})
        given = _read(said)
        if given is None:
            return Verdict(score=0.0, reason="the answer cannot be read", parts={"answered": 1.0, "right": 0.0})
        if right.number is not None and "=" in given.text:
            given = _worked_out(given)
            said = given.text
        if _UNDONE.search(said) and not _UNDONE.search(gold):
            return Verdict(score=0.0, reason="the answer is not worked out", parts={"answered": 1.0, "right": 0.0})
        if right.number is not None and given.number is None and _SUM.search(given.text):
            return Verdict(score=0.0, reason="the answer is not worked out", parts={"answered": 1.0, "right": 0.0})
        won = _equal(right, given, tolerance if mode == "numeric" else 0.0)
        reason = "the answer is right" if won else f"the answer is {said[:80]!r}"
        return Verdict(score=float(won), reason=reason, parts={"answered": 1.0, "right": float(won)})

    def prepare(self) -> None:
        """Import SymPy and the parser, and let them build their tables."""
        _sympy(r"\frac{x}{2}")


# Where the answer stands.

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=[{\w\\$+-])")
_TAG, _SHUT = re.compile("<answer>", re.IGNORECASE), re.compile("</answer>", re.IGNORECASE)
_LINE = re.compile(
    r"(?:^[ \t>*_#]*(?:A|Answer|Final answer)[ \t*_]*[:=]"
    r"|^[ \t>*_#]*(?:Final )?answer[ \t]+is[ \t]*:?"
    r"|####"
    r"|\b(?:the|my|our)[ \t]+(?:final[ \t]+|correct[ \t]+)?(?:answer|result)(?:[ \t]+(?:is|equals|=)[ \t]*:?|[ \t]*:)"
    r"|^[ \t>*_#]*(?:Therefore|Thus|So|Hence),?[ \t]+(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t]+(?:is|=):?)"
    r"[ \t*_]*\n?\s*(.*)",
    re.IGNORECASE | re.MULTILINE,
)
_CHOICE = re.compile(
    r"\b(?:or|maybe|perhaps|alternatively|possibly|either|otherwise|might|could|not sure|unsure|unless)\b",
    re.IGNORECASE,
)
# Words that take back what was said, or put another answer beside it.
_DOUBT = re.compile(
    r"\b(?:or|else|vs|versus|maybe|perhaps|alternatively|possibly|either|otherwise|may|might|could|can also|unless"
    r"|unsure|not sure|although|though|wait|actually|sorry|mistake|mistaken|error|correction|recheck|oops|hmm|scratch"
    r"|second thought|edit|instead|rather|should be|real|right|correct|incorrect|wrong|false|no|nope|also|ignore"
    r"|disregard|reconsider|hold on|my bad|take (?:that|it) back|retract)\b|[/|]",
    re.IGNORECASE,
)
_AGREES = re.compile(
    r"equivalent|the same|that is(?! (?:false|wrong|incorrect|not))|i\.e\.|no (?:mistake|error)|is (?:correct|right)",
    re.IGNORECASE,
)
_RETRACTED = re.compile(r"\b(?:wait|actually|sorry|mistaken?|correction|recheck|no[,:])", re.IGNORECASE)
# What a box is a part of, where it stands beside it.
_AFTER_BOX = re.compile(
    r"[ \t$*]*(?:\\[,;! ])*[ \t]*(\\%|%|(?:(?:\\times|\\cdot|×)\s*10\s*)?\^\s*(?:\{[+-]?\d+\}|[+-]?\d)"
    r"|(?:\\text\s*\{\s*)?(?:hundred|thousand|million|billion|trillion|dozen)\b)"
)
_CASES = re.compile(r"\b(?:case|cases|option|solution|root)\b", re.IGNORECASE)
_END = re.compile(r"(?<=[^\s.])\.(?=\s|$)|(?<!\\)!(?=\s|$)|,?\s+(?:since|because|which|as)\b")
_AND = re.compile(r"(?:[\s,;.$&*_|/\\=→]|quad|qquad)*(?:and|or|aka)?(?:[\s,;.$&*_|/\\=→]|quad|qquad)*", re.IGNORECASE)
_NUMBER_AFTER = re.compile(
    r"\d|\\frac|\\sqrt|\\pi|\b[a-z]\s*=|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w*teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand)\b",
    re.IGNORECASE,
)


_SPELLED_NUMBER = re.compile(
    r"(?<![\w.])[+-]?(?:\\[dt]?frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d)|\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?|\.\d+)(?:\s*\\?%)?"
)


@dataclass(frozen=True, slots=True)
class _Mark:
    start: int
    end: int
    text: str
    boxed: bool = True  # and no line


def final_answer(text: str, *, bare: bool = False) -> tuple[str | None, str]:
    """The text of the final answer, or None and why there is none; `bare` takes a text without marks as a whole."""
    marks, cut = _marks(text)
    if cut:
        return None, "the answer is cut off"
    if not marks:
        line = text.strip()
        if not line:
            return None, "nothing was said"
        if bare or ("\n" not in line and len(line) <= 100 and _read(line) is not None and _looks_bare(line)):
            return line, ""
        return None, "no answer is marked"
    last = marks[-1]
    together = [last.text]
    for before, after in zip(marks[-2::-1], marks[:0:-1], strict=True):
        between = text[before.end : after.start]
        if not before.text.strip() or _same_text(before.text, last.text):
            continue
        cases = _CASES.search(between) and not _RETRACTED.search(between)
        if before.boxed and after.boxed and (_AND.fullmatch(between) or cases):
            together.insert(0, before.text)
            continue
        if _CHOICE.search(between) and not _RETRACTED.search(between) and len(between) < 200:
            return None, "it offers a choice of answers"
        break
    if not last.text.strip():
        return None, "the answer is empty"
    if _takes_back(text[last.end :], last.text):
        return None, "it goes on to doubt its answer"
    return ", ".join(together).strip(), ""


def _takes_back(rest: str, answer: str) -> bool:
    """Whether what follows the answer gives another one: by a mark of its own, or in words of doubt with a number."""
    for line in _LINE.finditer(rest):
        said = _of_line(line).text
        if said and not _same_text(said, answer) and _NUMBER_AFTER.search(said) and not _means_same(said, answer):
            return True
    tight = _tight(answer)
    for doubt in _DOUBT.finditer(rest):
        window = rest[doubt.start() : doubt.end() + 60]
        again = re.search(rf"(?<![\w.-]){re.escape(tight)}(?!\w)", _tight(window)) is not None
        spelled = [found[0] for found in _SPELLED_NUMBER.finditer(window)]
        again = again or (bool(spelled) and all(_means_same(one, answer) for one in spelled))
        if (
            _NUMBER_AFTER.search(window, doubt.end() - doubt.start())
            and not again
            and not _AGREES.search(rest[max(0, doubt.start() - 12) : doubt.end() + 60])
        ):
            return True
    return False


def _means_same(one: str, other: str) -> bool:
    a, b = _read(one), _read(other)
    return a is not None and b is not None and a.number is not None and a.number == b.number


def _marks(text: str) -> tuple[list[_Mark], bool]:
    """What is marked as an answer, in order, and whether the last mark is not closed."""
    found: list[_Mark] = []
    place = 0
    while (tag := _TAG.search(text, place)) is not None:
        shut = _SHUT.search(text, tag.end())
        if shut is None:
            return [], True
        inner, place = text[tag.end() : shut.start()], shut.end()
        found.append(_Mark(tag.start(), place, final_answer(inner)[0] or inner))
    closes: dict[int, int] | None = None
    tags, until = found[::-1], 0
    for box in _BOX.finditer(text):
        while tags and tags[-1].start <= box.start():
            until = max(until, tags.pop().end)
        if box.start() < until:
            continue
        closes = _closes(text) if closes is None else closes
        end = closes.get(box.end()) if text[box.end()] == "{" else _closing(text, box.end())
        if end is None or end - box.end() > 20 * _LONGEST:
            if text.find("\\boxed", box.end()) < 0:
                return [], True
            continue
        inner_text = text[box.end() + 1 : end - 1] if text[box.end()] == "{" else text[box.end() : end]
        start, end, inner_text = _with_what_is_beside(text, box.start(), end, inner_text)
        found.append(_Mark(start, end, inner_text))
        until = end
    if re.search(r"\\(?:boxed|fbox)\s*\{?\s*\Z", text):
        return [], True
    if not found:
        found = [_of_line(line) for line in _LINE.finditer(text)]
    return sorted(found, key=lambda mark: mark.start), False


def _closes(text: str) -> dict[int, int]:
    """For each brace that opens a group, the place after the one that closes it."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            found[opened.pop()] = brace.end()
    return found


_BRACE = re.compile(r"(?<!\\)[{}]")
_GROUP = r"\{(?:[^{}]|\{[^{}]*\})*\}"
_TOKEN = re.compile(
    rf"\$[^$\n]*\$|[+-]?(?:\\[dtc]?frac\s*(?:{_GROUP}|\d)\s*(?:{_GROUP}|\d)|\\sqrt\s*(?:\[\d+\]\s*)?(?:{_GROUP}|\w)"
    rf"|\\[A-Za-z]+(?:\s*{_GROUP})*|\w+(?:\.\d+)?)"
)


def _with_what_is_beside(text: str, start: int, end: int, said: str) -> tuple[int, int, str]:
    """The answer of a box with the sign before it and the power or word of size after it."""
    if not said.strip():
        return start, end, said
    before = text[max(0, start - 2) : start]
    if before[-1:] in ("-", "−") and (len(before) == 1 or not (before[0].isalnum() or before[0] in "-−)]}")):
        inner = _read(said)
        bare = inner is not None and inner.number is not None and inner.number >= 0
        start, said = start - 1, f"-{said}" if bare else f"-({said})"
    after = _AFTER_BOX.match(text, end)
    if after is not None:
        size = re.sub(r"\\text\s*\{\s*", "", after[1])
        end, said = after.end(), f"{said} {size}"
    return start, end, said


def _closing(text: str, start: int) -> int | None:
    """The place after the group that begins at `start`; of a bare token, after it."""
    if text[start] != "{":
        token = _TOKEN.match(text, start)
        return None if token is None else token.end()
    depth = 0
    for place in range(start, min(len(text), start + 20 * _LONGEST)):
        if text[place] in "{}" and (place == 0 or text[place - 1] != "\\"):
            depth += 1 if text[place] == "{" else -1
            if not depth:
                return place + 1
    return None


def _of_line(line: re.Match[str]) -> _Mark:
    """The answer at the beginning of what a line says, up to the sentence's end."""
    text, place = line[1], line.start(1)
    for _ in range(3):  # "Final answer: the answer is 5"
        inner = _LINE.match(text)
        if inner is None or not inner[1].strip():
            break
        text, place = inner[1], place + inner.start(1)
    end = _END.search(text)
    said = text if end is None else text[: end.start()]
    return _Mark(line.start(), place + len(said), said.strip().strip("*_` \t").rstrip(":;"), boxed=False)


def _looks_bare(line: str) -> bool:
    """Whether a line is an answer and no sentence: at most two words of letters."""
    return len(re.findall(r"(?<!\\)\b[A-Za-z]{2,}\b", line)) <= 2 and not line.endswith("?")


def _same_text(one: str, other: str) -> bool:
    return _tight(one) == _tight(other)


def _tight(text: str) -> str:
    """Without white space, but for that between letters or digits."""
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text.strip())


# What an answer is.

# What is a question and no answer, unless the right answer has it.
_UNDONE = re.compile(r"\\(?:sum|int|oint|prod|lim|det|max|min|gcd|phantom)(?![A-Za-z])|\\frac\s*\{\s*d\s*\}")
_SUM = re.compile(r"[\d})]\s*(?:[+*-]|\\times|\\cdot|\\div)\s*[\d({\\]")


@dataclass(frozen=True, slots=True)
class _Value:
    text: str  # cleaned
    number: Fraction | None = None
    percent: bool = False
    parts: tuple[_Value, ...] = ()  # of a list, set, tuple or interval
    shape: str = ""  # its brackets: "" or "{}" where order does not count
    words: bool = False  # plain words, not mathematics
    literal: bool = False  # compared as it stands, such as a number in another base
    unit: str = ""
    name: str = ""  # of the variable that it is given to


_SPELLED = {
    **{"−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi "},
    **{"∞": r"\infty ", "€": "", "£": "", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm "},
    **{"∪": r"\cup ", "∩": r"\cap "},
    **{"≈": r"\approx ", "°": "", "∘": "", "\u00a0": " ", "\u2009": " ", "\u202f": " "},
    **dict.fromkeys("\u2010\u2011\u2012\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2044\u2215\uff0f", "/"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
    "∅": r"\emptyset",
    **{"’": "'", "“": '"', "”": '"', "∈": r"\in ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta "},
}
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|bigl|bigr|big|Big|Bigl|Bigr)(?![A-Za-z])"
    r"|\\[!;:]|\\,|\\ |\\quad|\\qquad|~|\^\s*\{?\s*\\circ\s*\}?|\\degree"
)
_ROW = "\ue000"  # stands for what ends a row of a matrix
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4})?")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:(?:,|\{,\}| )\d{3})+(?:\.\d+)?")
_SCIENTIFIC = re.compile(r"(.+?)(?:\\times|\\cdot|\*)\s*10\s*(?:\^|\*\*)\s*(?:\{([+-]?\d{1,4})\}|([+-]?\d{1,4}))")
_FRACTION = re.compile(r"([+-]?)\\frac\s*(?:\{([^{}]+)\}|(\d))\s*(?:\{([^{}]+)\}|(\d))")
_SLASH = re.compile(r"([+-]?[\d.,]+)\s*/\s*([\d.,]+)")
_MIXED = re.compile(r"([+-]?)(\d+)\s*(?:\\frac\s*\{(\d+)\}\s*\{(\d+)\}|\s(\d+)\s*/\s*(\d+))")
_UNIT = re.compile(r"(.*?[\d}.)])\s*(?:\\text\s*\{)?\s*([A-Za-z][A-Za-z .'-]*?(?:\^\{?\d\}?|/[A-Za-z]+)?)\s*\}?")
_SIZES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7,
    "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_SIZED = re.compile(rf"(.*?[\d}}.)])\s*(?:\\text\s*\{{)?\s*({'|'.join(_SIZES)})s?\b\s*\}}?\s*(.*)", re.IGNORECASE)
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_NO_UNITS = {
    "or", "and", "not", "minus", "plus", "times", "maybe", "perhaps", "to", "through", "between", "hundred",
    "thousand", "million", "billion", "trillion", "dozen", "half", "halves", "third", "thirds", "percent",
    "point", "e", "i", "x", "y", "z", "n", "k", "a", "b", "c", "t", "r", "pi", "sqrt", "log", "ln", "sin",
    "cos", "tan", "wrong", "false", "incorrect", "invalid", "less", "more", "fewer", "by", "from", "of", "lakh",
    "crore", "off", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "zero",
    "none", "doubled", "tripled", "reciprocal", "inverse", "mistake", "error", "is", "was", "isn't",
    "approximately", "about", "almost", "nearly", "mod", "squared", "cubed", "factorial", "over", "negative",
    "either", "if", "but", "wait", "actually", "no",
}  # fmt: skip


def _clean(text: str) -> str:
    """An answer without what only sets it: mathematics signs, spacing, fonts."""
    text = text.replace("\\\\", _ROW).replace("\\!", "")
    if not text.isascii():
        text = _spelled_out(text)
    text = text.replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"√\s*(\d+|\([^()]*\)|[A-Za-z])", lambda found: rf"\sqrt{{{found[1].strip('()')}}}", text)
    text = re.sub(r"\\(?:mathrm|mathbf|mathit|operatorname|textbf|textit|rm|bf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\bar\s*(\{\d+\}|\d)", r"\\overline\1", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(
        r"\$|\\\(|\\\)|\\\[|\\\]",
        " ",
        text.replace("\\$", " ").replace("\\%", "%").replace("\\{", "\\lbrace ").replace("\\}", "\\rbrace "),
    )
    text = _DROPPED.sub(" ", text)
    text = " ".join(text.split()).strip("*_` ")
    while (inner := _unwrapped(text)) is not None:
        text = inner
    return (text.rstrip(".,; ") if not text.endswith("..") else text).replace(_ROW, " \\\\ ")


def _spelled_out(text: str) -> str:
    """Text with the signs that Unicode has for mathematics as LaTeX spells them."""
    for sign, spelled in _SPELLED.items():
        text = text.replace(sign, spelled)
    text = _RAISED.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0]).replace('−', '-')}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{unicodedata.normalize('NFKC', found[0])}}}", text)
    out = []
    for letter in text:
        kind = unicodedata.decomposition(letter).partition(" ")[0]
        plain = unicodedata.normalize("NFKC", letter)
        if kind == "<fraction>":
            over, _, under = plain.partition("\u2044")
            out.append(rf"\frac{{{over}}}{{{under}}}")
        else:  # a digit or letter that is wide, or of a font of mathematics; not one in a circle
            out.append(plain if kind in ("<wide>", "<font>") else letter)
    return "".join(out)


def _unwrapped(text: str) -> str | None:
    r"""What stands in braces, or in one `\text{…}` or box, that go around the whole."""
    wrap = re.match(r"\\(?:text|textbf|textit|mbox|boxed|fbox)\s*(?=\{)", text)
    start = wrap.end() if wrap else 0
    if text[start : start + 1] != "{" or _closing(text, start) != len(text):
        return None
    return text[start + 1 : -1].strip()


def _read(text: str) -> _Value | None:
    """What an answer means, or None where it means nothing."""
    if len(text) > 20 * _LONGEST:
        return None
    if _depth(text) > _DEEPEST:
        text = _peel(text)
        if _depth(text) > _DEEPEST:
            return None
    text = _clean(text)
    if not text or len(text) > _LONGEST:
        return None
    return _value(text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for letter in text:
        if letter in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in "})]":
            depth -= 1
    return deepest


def _peel(text: str) -> str:
    """Without the braces that go around the whole, however many."""
    text = text.strip()
    count = 0
    while count < len(text) // 2 and text[count] == "{" and text[-1 - count] == "}":
        count += 1
    return text[count : len(text) - count] if count else text


def _value(text: str) -> _Value:
    text = re.sub(r"^(?:\\approx|\\sim)(?![A-Za-z])\s*", "", text)
    percent = text.endswith("%")
    number = _number(text[:-1].strip() if percent else text)
    if number is not None:
        return _Value(text, number / 100 if percent else number, percent)
    stripped = re.sub(r"^[A-Za-z](?:_\{?\w+\}?)?\s*=\s*(?=[^=])", "", text)
    if stripped != text and len(_split(text)) == 1:
        inner = _value(stripped)
        if inner.number is not None or inner.parts:
            name = text[: text.index("=")].strip()
            return _Value(text, inner.number, inner.percent, inner.parts, inner.shape, name=name)
    if re.fullmatch(r"[0-9A-Fa-f.]+\s*_\s*(?:\{\s*\d+\s*\}|\d+)", text):
        return _Value(re.sub(r"[\s{}]", "", text), literal=True)
    sized = _sized(text)
    if sized is not None:
        return sized
    unit = _UNIT.fullmatch(text)
    if unit and _number(unit[1]) is not None:
        names = unit[2].lower().split()
        apart = len(names[0]) > 1 or text[len(unit[1]) : len(unit[1]) + 1] in " \\"  # 5 m, and not the product 5m
        if apart and len(names) <= 3 and not any(_no_unit(name) for name in unit[2].split()):
            return _Value(text, _number(unit[1]), unit=" ".join(name.rstrip("s.") for name in names))
        if names == ["percent"]:
            return _Value(text, Fraction(_number(unit[1]) or 0) / 100, True)
    if text.count(r"\pm") == 1 and len(_split(text)) == 1:
        both = [_value(_clean(text.replace(r"\pm", sign, 1))) for sign in ("+", "-")]
        return _Value(text, parts=tuple(both))
    shape, inner_text = _brackets(text)
    pieces = _split(inner_text)
    if len(pieces) > 1 or (shape == "{}" and pieces[0]):
        return _Value(text, parts=tuple(_value(_clean(piece)) for piece in pieces), shape=shape)
    if shape in ("()", "[]") and inner_text.strip():  # brackets around one answer, as in (A)
        inner = _value(inner_text.strip())
        if inner.number is not None or len(inner_text.strip()) == 1:
            return _Value(inner.text, inner.number, inner.percent, words=inner.words)
    words = re.fullmatch(r"[A-Za-z][A-Za-z' .,-]*", text) is not None and (
        len(text) == 1 or re.search(r"[A-Za-z]{2,}", text) is not None
    )
    words = words and text.lower() not in ("pi", "infinity", "infty", "inf")
    return _Value(text, words=words)


def _sized(text: str) -> _Value | None:
    """A number of dozens, millions or the like, with or without what is counted."""
    found = _SIZED.fullmatch(text)
    number = None if found is None else _number(found[1])
    if found is None or number is None:
        return None
    counted = _value(f"{number * _SIZES[found[2].lower()]} {found[3]}".strip())  # 5 hundred thousand, 3 dozen eggs
    return _Value(text, counted.number, unit=counted.unit) if counted.number is not None else None


def _worked_out(given: _Value) -> _Value:
    """Of 6*7 = 42 the number, where what stands on both sides is the same."""
    sides = [side.strip() for side in re.split(r"(?<![<>!=])=(?!=)", given.text)]
    if given.number is not None or given.parts or not 2 <= len(sides) <= 4 or not all(sides):
        return given
    number = next((one for one in (_value(sides[-1]), _value(sides[0])) if one.number is not None), None)
    if number is None or re.search(r"(?<!\\)\b[A-Za-z]\b", given.text):
        return given
    return number if all(_equal(number, _value(side), 0.0) for side in sides) else given


def _no_unit(word: str) -> bool:
    """Whether a word behind a number says more than what is counted: another number, or that it is wrong."""
    bare = word.strip(".'-")
    if bare in ("K", "M", "B", "G", "T", "bn", "mn", "mil", "k"):
        return True
    bare = bare.lower()
    return bare in _NO_UNITS or (
        bare.endswith(("illion", "illions", "ths", "dozens", "ty", "teen", "ed", "ly")) and bare != "feed"
    )


def _number(text: str) -> Fraction | None:
    """The number that a text spells, exactly."""
    text = text.strip()
    if len(text) > _MOST_DIGITS:
        return None
    if _GROUPED.fullmatch(text):
        text = re.sub(r"[, {}]", "", text)
    if _NUMBER.fullmatch(text):
        if re.search(r"[eE][+-]?\d{4}", text):
            return None
        return Fraction(text)
    sign = re.fullmatch(r"([+-])\s+(\S.*)", text)
    if sign:
        inner = _number(sign[2])
        return None if inner is None else (-inner if sign[1] == "-" else inner)
    mixed = _MIXED.fullmatch(text)
    if mixed:
        over, under = mixed[3] or mixed[5], mixed[4] or mixed[6]
        if int(under):
            value = int(mixed[2]) + Fraction(int(over), int(under))
            return -value if mixed[1] == "-" else value
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        top, bottom = _number(fraction[2] or fraction[3]), _number(fraction[4] or fraction[5])
        if top is not None and bottom:
            return (-1 if fraction[1] == "-" else 1) * top / bottom
        return None
    slash = _SLASH.fullmatch(text)
    if slash:
        top, bottom = _number(slash[1]), _number(slash[2])
        return top / bottom if top is not None and bottom else None
    repeating = re.fullmatch(r"([+-]?)(\d*)\.(\d*)\\overline\s*\{(\d+)\}", text)
    if repeating:
        whole, fixed, again = repeating[2] or "0", repeating[3], repeating[4]
        value = Fraction(int(whole + fixed + again) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(again) - 1))
        return -value if repeating[1] else value
    scientific = _SCIENTIFIC.fullmatch(text)
    if scientific:
        base, power = _number(scientific[1]), int(scientific[2] or scientific[3])
        return base * Fraction(10) ** power if base is not None and abs(power) <= 400 else None
    return None


_PAIRS = (("\\lbrace", "\\rbrace", "{}"), ("(", ")", "()"), ("[", "]", "[]"), ("(", "]", "(]"), ("[", ")", "[)"))


def _brackets(text: str) -> tuple[str, str]:
    """The brackets around the whole, and what is in them."""
    for opening, closing, shape in _PAIRS:
        if text.startswith(opening) and text.endswith(closing) and _encloses(text, len(opening), len(closing)):
            return shape, text[len(opening) : -len(closing)].strip()
    return "", text


def _encloses(text: str, head: int, tail: int) -> bool:
    depth = 0
    for letter in text[head:-tail]:
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:
            return False
    return depth == 0


def _split(text: str) -> list[str]:
    """The parts between commas, semicolons and "and", outside of brackets."""
    pieces, depth, start = [], 0, 0
    text = re.sub(r"\s*,?\s+(?:and|or)\s+|\s*\\text\s*\{\s*(?:and|or)\s*\}\s*", ", ", text)
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter in ",;" and depth == 0:
            pieces.append(text[start:place].strip())
            start = place + 1
    pieces.append(text[start:].strip())
    return pieces


# Whether two answers are equal.


def _equal(right: _Value, given: _Value, tolerance: float) -> bool:
    if right.name and given.name and right.name != given.name:
        return False
    if right.unit and given.unit and right.unit != given.unit:
        return False
    if right.literal or given.literal:
        return _same_text(re.sub(r"_10$", "", right.text), re.sub(r"_10$", "", given.text))
    if right.number is not None and given.number is not None:
        if right.percent != given.percent and not right.percent and abs(right.number) > 1:
            return _close(right.number, given.number, tolerance) or _close(right.number, given.number * 100, tolerance)
        if right.percent and not given.percent and _close(right.number * 100, given.number, tolerance):
            return True
        return _close(right.number, given.number, tolerance)
    if right.number is not None and given.shape == "" and given.parts:  # 1/2, or 0.5
        return all(part.number is not None and _equal(right, part, tolerance) for part in given.parts)
    if right.parts or given.parts:
        return _equal_parts(right, given, tolerance)
    if _same_text(right.text, given.text):
        return True
    if re.fullmatch("[A-J]", right.text):  # a choice, said with its text: (A) 42
        choice = re.fullmatch(r"\(?([A-J])(?:\)|\.|:)[).:]*\s*(.*)", given.text)
        others = choice is not None and re.search(r"\b[A-J]\b|\b(?:or|and|not)\b|[/|]", choice[2])
        if choice is not None:
            return choice[1] == right.text and not others
    if right.words or given.words:
        return right.words and given.words and _plain(right.text) == _plain(given.text)
    return _same_expression(right.text, given.text, tolerance)


def _equal_parts(right: _Value, given: _Value, tolerance: float) -> bool:
    named = [part.name for part in given.parts if part.name]
    if named and not any(part.name for part in right.parts):  # x = 3, y = 4 says in which order they come
        given = _Value(given.text, parts=tuple(sorted(given.parts, key=lambda part: part.name)), shape="()")
    shapes = {right.shape, given.shape}
    loose = shapes <= {"", "{}"}
    if len(right.parts) != len(given.parts) or not (loose or right.shape == given.shape or shapes <= {"", "()"}):
        return False
    if not loose:
        return all(_equal(a, b, tolerance) for a, b in zip(right.parts, given.parts, strict=True))
    left = list(given.parts)
    for part in right.parts:
        match = next((one for one in left if _equal(part, one, tolerance)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _close(one: Fraction, other: Fraction, tolerance: float) -> bool:
    return one == other or (bool(tolerance) and abs(one - other) <= Fraction(tolerance) * max(abs(one), abs(other)))


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text).casefold().split())


def _readable(value: _Value) -> bool:
    plain = "\\" not in value.text and re.search(r"\w", value.text) is not None
    return value.words or plain or _sympy(value.text) is not None


def _same_expression(right: str, given: str, tolerance: float) -> bool:
    one, other = _sympy(right), _sympy(given)
    if one is None or other is None:
        return False
    import sympy

    if isinstance(one, sympy.Equality) != isinstance(other, sympy.Equality):
        one, other = _side(one), _side(other)
    try:
        if one == other:
            return True
        relations = (
            isinstance(one, sympy.core.relational.Relational),
            isinstance(other, sympy.core.relational.Relational),
        )
        if all(relations) and one.canonical == other.canonical:  # 3 < x is x > 3
            return True
        if isinstance(one, sympy.Equality) and isinstance(other, sympy.Equality):
            a, b = sympy.expand(one.lhs - one.rhs), sympy.expand(other.lhs - other.rhs)
            return a != 0 and b != 0 and sympy.simplify(a / b).is_number is True and sympy.simplify(a / b) != 0
        if isinstance(one, sympy.MatrixBase) or isinstance(other, sympy.MatrixBase):
            same_shape = (
                isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase) and one.shape == other.shape
            )
            return same_shape and all(sympy.simplify(cell) == 0 for cell in one - other)
        if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
            return False
        if one.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan) or other.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
            return False  # infinity is near no number, and less infinity it is anything
        difference = one - other
        if one.is_number and other.is_number:
            off = abs(sympy.N(difference, 30))
            if tolerance:
                return bool(off <= tolerance * max(abs(sympy.N(one, 30)), abs(sympy.N(other, 30))))
            if off > 1e-20:
                return False
        return bool(sympy.simplify(difference) == 0)
    except Exception:  # whatever SymPy raises about what was said, it does not say that the two are the same
        return False


# Powers of powers of powers, which nothing that is written out can be and SymPy computes until it is ended.
_TOWER = re.compile(r"\^\s*\{[^{}^]*\^\s*\{[^{}^]*\^|\d\s*\^\s*\d+\s*\^\s*\d+\s*\^")


def _side(expression: Any) -> Any:
    """Of `x = 5`, what stands on the right."""
    import sympy

    if isinstance(expression, sympy.Equality) and isinstance(expression.lhs, sympy.Symbol):
        return expression.rhs
    return expression


def _sympy(text: str) -> Any:
    """The SymPy object that LaTeX spells, with decimals as exact fractions; None where it spells none."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy

    if _TOWER.search(text):
        return None
    text = re.sub(
        r"(?<![\w.])(\d*)\.(\d+)", lambda found: rf"\frac{{{int(found[1] + found[2])}}}{{{10 ** len(found[2])}}}", text
    )
    text = re.sub(r"\*\*", "^", text)
    text = re.sub(r"(?<![\\A-Za-z])(sqrt)\(([^()]*)\)", r"\\sqrt{\2}", text)
    text = re.sub(r"(?<![\\A-Za-z])inf(?:inity)?(?![A-Za-z])", r"\\infty", text)
    text = re.sub(r"(?<![\\A-Za-z])(pi|sin|cos|tan|log|ln|infty)(?![A-Za-z])", r"\\\1", text)
    text = text.replace("*", r"\cdot ")
    try:
        return latex2sympy(
            text, is_real=True, normalization_config=NormalizationConfig(malformed_operators=True, nits=True)
        )
    except Exception:  # of a parser that is generated: whatever it raises, it cannot read this
        return None
