"""The program that a text holds: fenced, bare, or as the rest of one that a prompt began.

Code is read here and never run.
"""

from __future__ import annotations

import ast
import re
import threading
import warnings

__all__ = ["code_of"]

_BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_QUIET = threading.Lock()  # filters of warnings belong to all threads
_LANGUAGES = ("", "python", "py", "python3", "python-repl")


def code_of(response: str, entry_point: str = "", prompt: str = "") -> str:
    """The program of a response; empty where there is none.

    Where the response has fenced blocks, one of them; else the response as it stands. It is a whole program
    where it defines the entry point, and else a completion of `prompt`.
    """
    name = entry_point.split(".")[0]
    blocks = [found[2] for found in _BLOCK.finditer(response) if found[1].lower() in _LANGUAGES]
    pieces = blocks[::-1] or [response]
    if not name:
        return next((piece for piece in pieces if _parses(piece)), pieces[0])
    for piece in pieces:
        if _defines(piece, name):
            return _around(prompt, name) + piece
    if len(blocks) > 1 and _defines("\n".join(blocks), name):
        return _around(prompt, name) + "\n".join(blocks)
    if prompt:
        for piece in pieces:
            head = prompt.rstrip() + "\n"
            for whole in (prompt + piece, head + "    " + piece.lstrip(), head + _indented(piece)):
                if _defines(whole, name):
                    return whole
        # A completion that goes on after the function's end, say into prose: as much of it as is a program.
        lines = pieces[0].splitlines(keepends=True)
        for count in range(len(lines) - 1, 0, -1):
            whole = prompt + "".join(lines[:count])
            if (not lines[count][:1].isspace()) and _defines(whole, name):
                return whole
    return pieces[0]


def _parses(code: str) -> bool:
    return _tree(code) is not None


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
