"""The program that a text holds: fenced, bare, or as the rest of one that a prompt began.

Fences are CommonMark's: three or more backticks or tildes, at the margin or inside of a list, closed by as many of
the same; what a block of Markdown holds is read as well. A fence that is not closed goes on to the
next that opens, or to the end.

One block counts, and which one is decided without running any: the last that gives the entry point a meaning
(without an entry point, the last that is a program), but for those that are called wrong where they are shown,
in the line before them or in their first comment, as in "Wrong way:". Where all are called wrong, the last
counts after all. So a counterexample behind the answer costs nothing, and nobody gains by several
answers: the choice hangs on the text alone, never on how the tests go. What the block uses and does not define is
taken from the blocks before it.

Code is read here and never run.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

__all__ = ["Block", "blocks_of", "code_of"]

_FENCE = re.compile(r"^([ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(?:<\w+>[ \t]*)?(`{3,}|~{3,})[ \t]*([^`\n]*)$")
_CLOSED = re.compile(r"^([ \t]*)(`{3,}|~{3,})(?![`~\w{])")
_QUIET = threading.Lock()  # filters of warnings belong to all threads
_LANGUAGES = ("", "python", "py", "python3", "py3", "python-repl", "ipython")
_WRONG = re.compile(
    r"\b(?:wrong|incorrect(?:ly)?|buggy|broken|mistakes?|mistaken|anti-?pattern|bad|faulty|flawed|not like this"
    r"|(?:do not|don't|never) (?:do|write|use) (?:this|it|that))\b|[❌✗✘]",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"\b(?:correct(?:ed|ly|ion)?|fix(?:ed|es|ing)?|right|better|instead|improved?|solution|to avoid|avoids|avoiding"
    r"|without|repair(?:ed)?|good|final|no mistakes?|not wrong)\b|✅",
    re.IGNORECASE,
)
_MOST_CUTS = 20
_LONGEST_LABEL = 200  # characters of a line that may say what a block is


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a text."""

    language: str  # the first word behind the fence, in lower case
    text: str  # without the indentation of its fence
    start: int  # where the fence begins in the whole text
    end: int  # behind the closing fence
    closed: bool  # whether a fence closes it
    before: str  # the last line before it that is not empty


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a text, in order; of a block of Markdown, those inside."""
    found: list[Block] = []
    fence, indent, info, start, before = "", 0, "", 0, ""
    lines: list[str] = []
    place = 0

    def close(end: int, closed: bool) -> None:
        language = re.match(r"[\w+-]*", info.strip().lstrip("{.").lower())
        block = Block(language[0] if language else "", "".join(lines), start, end, closed, before)
        if block.language in ("markdown", "md"):
            inner = blocks_of(block.text)
            found.extend(replace(one, start=start, end=end, before=one.before or before) for one in inner)
        else:
            found.append(block)

    last = ""
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):  # what else parts lines may stand in a string
        opened = _FENCE.match(line.rstrip("\r\n"))
        closed = _CLOSED.match(line) if fence else None
        inside = closed is not None and (closed[2][0] != fence[0] or len(closed[2]) < len(fence))
        if fence and closed is not None and not inside and _width(closed[1]) < indent + 4:
            close(place + len(line), True)
            fence, last = "", ""
        elif opened is not None and (
            not fence or (opened[3] and opened[2] == fence and _width(opened[1]) < indent + 4)
        ):
            if fence:  # the one before was never closed
                close(place, False)
            fence, indent, info, start, before, lines = opened[2], _width(opened[1]), opened[3], place, last, []
        elif fence:
            lines.append(_less(line, indent))
        elif line.strip():
            last = line.strip()
        place += len(line)
    if fence:
        close(len(text), False)
    return found


def code_of(response: str, entry_point: str = "", prompt: str = "") -> str:
    """The program of a response; empty where there is none.

    Where the response has fenced blocks, one of them; else the response as it stands. It is a whole program
    where it defines the entry point, and else a completion of `prompt`.
    """
    name = entry_point.split(".")[0]
    blocks = [block for block in blocks_of(response) if block.language in _LANGUAGES]
    if not blocks:
        return _single(response, name, prompt)
    called_wrong = [block for block in blocks if _is_called_wrong(block)]
    order = [block for block in blocks[::-1] if block not in called_wrong] + called_wrong[::-1]
    if not name:
        return _program([block for block in order if block not in called_wrong] or order)
    for block in order:
        code = next((one for one in (block.text, textwrap.dedent(block.text)) if _defines(one, name)), None)
        if code is not None:
            earlier = [one.text for one in blocks[: blocks.index(block)] if one not in called_wrong]
            return _around(prompt, name) + _needed(code, earlier) + code
    whole = "\n".join(block.text for block in blocks)
    if len(blocks) > 1 and _defines(whole, name):
        return _around(prompt, name) + whole
    for block in order:
        code = _completed(block.text, name, prompt)
        if code is not None:
            return code
    return order[0].text


def _single(code: str, name: str, prompt: str) -> str:
    """A response without fences."""
    if name and _defines(code, name):
        return _around(prompt, name) + code
    return (_completed(code, name, prompt) if name else None) or code


def _program(order: Sequence[Block]) -> str:
    """Of blocks in the order of their claim, the first that is a program and does something."""
    named = [block for block in order if block.language] or order  # what a program prints stands in bare blocks
    for wanted in (_acts, _parses):
        for block in named:
            for code in (block.text, textwrap.dedent(block.text)):
                if wanted(code):
                    return code
    return named[0].text


def _completed(piece: str, name: str, prompt: str) -> str | None:
    """The program that a prompt begins and the piece goes on with."""
    if not prompt:
        return None
    head = prompt.rstrip() + "\n"
    for whole in (prompt + piece, head + "    " + piece.lstrip(), head + _indented(piece)):
        if _defines(whole, name):
            return whole
    # A completion that goes on after the function's end, say into prose: as much of it as is a program.
    lines = piece.splitlines(keepends=True)
    for _ in range(_MOST_CUTS):
        broken = _broken_at(prompt + "".join(lines)) - prompt.count("\n") - 1  # the line, counted from 0
        cut = next((n for n in range(min(broken, len(lines) - 1), 0, -1) if not lines[n][:1].isspace()), 0)
        if not cut:
            return None
        lines = lines[:cut]
        if _defines(prompt + "".join(lines), name):
            return prompt + "".join(lines)
    return None


def _broken_at(code: str) -> int:
    """The line that keeps code from being a program; behind the last where it is one."""
    try:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return code.count("\n") + 1


def _is_called_wrong(block: Block) -> bool:
    """Whether the line before a block, or its own first comment, says that it is wrong, and not that it is mended."""
    first = next((line.strip() for line in block.text.splitlines() if line.strip()), "")
    labels = [block.before] + ([first] if first.startswith("#") else [])
    return any(
        len(one) <= _LONGEST_LABEL and _WRONG.search(one) is not None and _RIGHT.search(one) is None for one in labels
    )


def _needed(code: str, earlier: Sequence[str]) -> str:
    """Those of the earlier blocks that define what the code uses and does not define, each once."""
    if not earlier or (tree := _tree(code)) is None:
        return ""
    lacks = _loose(tree)
    kept: list[str] = []
    for text in reversed(earlier):
        block = _tree(text) if lacks else None
        if block is not None and lacks & {name for node in block.body for name in _bound(node)}:
            kept.insert(0, text.rstrip() + "\n\n")
            lacks = (lacks | _loose(block)) - {name for node in block.body for name in _bound(node)}
    return "".join(kept)


def _loose(tree: ast.Module) -> set[str]:
    """Names that a program reads and binds nowhere."""
    read: set[str] = set()
    bound = set(dir(builtins)) | {"__name__", "__file__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.stmt):
            bound |= set(_bound(node))
    return read - bound


def _bound(node: ast.stmt) -> Iterator[str]:
    """Names that a statement gives a meaning to, by itself."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from ((one.asname or one.name).split(".")[0] for one in node.names)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))


def _parses(code: str) -> bool:
    return _tree(code) is not None


def _acts(code: str) -> bool:
    """Whether code is a program that calls something: a number that stands alone is what one printed."""
    tree = _tree(code)
    return tree is not None and any(isinstance(node, ast.Call) for node in ast.walk(tree))


def _tree(code: str) -> ast.Module | None:
    try:
        with _QUIET, warnings.catch_warnings():  # what Python thinks of its style is nothing to be told here
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
            compile(tree, "<program>", "exec", dont_inherit=True)  # a return outside of a function is found only here
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree


def _defines(code: str, name: str) -> bool:
    tree = _tree(code)
    return tree is not None and any(_names(node, name) for node in tree.body)


def _names(node: ast.stmt, name: str) -> bool:
    """Whether a statement of the top level gives the name something to call."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return node.name == name
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return any((one.asname or one.name) == name for one in node.names)
    return isinstance(node, (ast.If, ast.Try)) and any(
        _names(inner, name) for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.stmt)
    )


def _around(prompt: str, name: str) -> str:
    """The prompt without the function that it asks for: its imports and helpers."""
    tree = _tree(prompt) or _tree(prompt.rstrip() + "\n    pass\n")
    if tree is None:
        return ""
    kept = [node for node in tree.body if not _names(node, name)]
    return "".join(ast.unparse(node) + "\n" for node in kept)


def _indented(code: str) -> str:
    return "".join(f"    {line}" if line.strip() else line for line in code.splitlines(keepends=True))


def _width(indent: str) -> int:
    return len(indent.expandtabs(4))


def _less(line: str, indent: int) -> str:
    """A line without the white space that its block is indented by, as far as it has that."""
    count = 0
    while count < len(line) and _width(line[: count + 1]) <= indent and line[count] in " \t":
        count += 1
    return line[count:]
