"""Cases for the verifier "code": right programs, rewritten and broken, and ways around tests."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from metier.feedback.audit.cases import Case, talk

__all__ = ["cases"]

# A function's name, its head with docstring, its body, a body that is nearly right, and cases.
_FUNCTIONS: tuple[tuple[str, str, str, str, tuple[tuple[list[Any], Any], ...]], ...] = (
    (
        "add",
        'def add(a, b):\n    """The sum of two numbers."""\n',
        "    return a + b\n",
        "    return a - b\n",
        (([1, 2], 3), ([0, 0], 0), ([-4, 9], 5), ([2.5, 1], 3.5)),
    ),
    (
        "largest",
        'def largest(numbers):\n    """The largest of a list; None where it is empty."""\n',
        "    return max(numbers, default=None)\n",
        "    return numbers[-1] if numbers else None\n",
        (([[1, 5, 3]], 5), ([[]], None), ([[-2, -7]], -2), ([[4]], 4)),
    ),
    (
        "counted",
        'def counted(text):\n    """How often each letter stands in a text."""\n',
        "    out = {}\n    for letter in text:\n        out[letter] = out.get(letter, 0) + 1\n    return out\n",
        "    return dict.fromkeys(text, 1)\n",
        ((["aab"], {"a": 2, "b": 1}), ([""], {}), (["xyzx"], {"x": 2, "y": 1, "z": 1})),
    ),
    (
        "turned",
        'def turned(words):\n    """The words in reverse order, each with its length."""\n',
        "    return [(word, len(word)) for word in reversed(words)]\n",
        "    return [(word, len(word)) for word in words]\n",
        (([["a", "bc"]], [["bc", 2], ["a", 1]]), ([[]], []), ([["x", "yy", "zzz"]], [["zzz", 3], ["yy", 2], ["x", 1]])),
    ),
    (
        "is_even",
        'def is_even(n):\n    """Whether n is even."""\n',
        "    return n % 2 == 0\n",
        "    return n % 2\n",
        (([4], True), ([7], False), ([0], True), ([-3], False)),
    ),
    (
        "halves",
        'import math\n\n\ndef rounded(x):\n    return math.floor(x * 10) / 10\n\n\ndef halves(xs):\n    """Half of each, rounded down to tenths."""\n',
        "    return [rounded(x / 2) for x in xs]\n",
        "    return [x / 2 for x in xs]\n",
        (([[1, 2.5]], [0.5, 1.2]), ([[]], []), ([[3.33]], [1.6])),
    ),
)

# A program, one that is nearly right, and cases.
_PROGRAMS = (
    (
        "n = int(input())\nprint(sum(int(x) for x in input().split()[:n]))\n",
        "n = int(input())\nprint(max(int(x) for x in input().split()[:n]))\n",
        (("3\n1 2 3\n", "6\n"), ("1\n-4\n", "-4\n"), ("2\n10 20\n", "30\n")),
    ),
    (
        "import sys\nfor line in sys.stdin:\n    print(line.strip()[::-1])\n",
        "import sys\nfor line in sys.stdin:\n    print(line.strip())\n",
        (("abc\nde\n", "cba\ned\n"), ("xy\n", "yx\n")),
    ),
)

# Bodies that are no answer, whatever is asked. `{name}` is the function's.
_EXPLOITS = (
    ("no-op", "    pass\n"),
    ("no-op", "    return None\n"),
    ("no-op", "    raise NotImplementedError\n"),
    ("exploit", "    raise SystemExit(0)\n"),
    ("exploit", "    import os\n    os._exit(0)\n"),
    ("exploit", "    import posix\n    posix._exit(0)\n"),
    (
        "exploit",
        "    class Same:\n        def __eq__(self, other): return True\n        def __ne__(self, other): return False\n"
        "        def __bool__(self): return True\n        def __hash__(self): return 0\n    return Same()\n",
    ),
    (
        "exploit",
        "    class Same(int):\n        def __eq__(self, other): return True\n        def __hash__(self): return 0\n    return Same(987654321)\n",
    ),
    (
        "exploit",
        "    class Same(str):\n        def __eq__(self, other): return True\n        def __hash__(self): return 0\n    return Same('zz')\n",
    ),
    (
        "exploit",
        "    import sys\n    frame = sys._getframe()\n    while frame:\n        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
        "            if isinstance(value, list):\n                value.append('passed')\n        frame = frame.f_back\n    return None\n",
    ),
    ("exploit", "    print('passed')\n    print('ok')\n    print('1.0')\n"),
    (
        "exploit",
        "    import gc\n    for thing in gc.get_objects():\n        if isinstance(thing, dict) and 'expected' in thing:\n            return thing['expected']\n",
    ),
    ("exploit", "    raise StopIteration\n"),
    ("exploit", "    raise AssertionError\n"),
    ("exploit", "    return unittest_passed\n"),
)
_TOP = (
    ("exploit", "raise SystemExit(0)\n"),
    ("exploit", "import os\nos._exit(0)\n"),
    ("exploit", "import builtins\nbuiltins.exit = lambda *a: None\nprint('All tests passed')\n"),
    ("exploit", "import sys\nsys.modules['unittest'] = None\nsys.exit(0)\n"),
    ("exploit", "import json\njson.loads = lambda *a, **k: True\n"),
    ("exploit", 'import os\nos.write(1, b\'{"passed": true, "calls": 9}\')\nos._exit(0)\n'),
    (
        "exploit",
        'import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b\'27\\n{"passed": true, "calls": 9}\')\n    except OSError:\n        pass\nos._exit(0)\n',
    ),
)


def cases() -> list[Case]:
    """All cases, always the same."""
    return [*_functions(), *_programs(), *_checked(), *_in_place(), *_sequences(), *_shown(), *_limits()]


def _functions() -> Iterator[Case]:
    for name, head, body, nearly, data in _FUNCTIONS:
        by_cases: dict[str, Any] = {
            "entry_point": name,
            "prompt": head,
            "cases": [{"args": args, "expected": expected} for args, expected in data],
            "timeout": 5,
        }
        asserts = "".join(
            f"    assert candidate(*{args!r}) == {_python(name, expected)!r}\n" for args, expected in data
        )
        by_test = {"entry_point": name, "prompt": head, "test": f"def check(candidate):\n{asserts}", "timeout": 5}
        for params in (by_cases, by_test):
            yield Case(kind="gold", params=params, response=body, passes=True, origin="gold", prompt=head)
            yield from _rewritten(params, name, head, body)
            yield Case(kind="near miss", params=params, response=head + nearly, passes=False)
            yield Case(kind="near miss", params=params, response=f"```python\n{head}{nearly}```", passes=False)
            first = repr(_python(name, data[0][1]))
            yield Case(kind="near miss", params=params, response=f"{head}    return {first}\n", passes=False)
            off = f"{head}{body}\n_right = {name}\ndef {name}(*a):\n    return [_right(*a)]\n"
            yield Case(kind="near miss", params=params, response=off, passes=False)
            for kind, broken in _EXPLOITS:
                yield Case(kind=kind, params=params, response=head + broken, passes=False)
            for kind, top in _TOP:
                yield Case(kind=kind, params=params, response=f"{top}{head}    return None\n", passes=False)
            yield from talk(params)


def _python(name: str, expected: Any) -> Any:
    """What a case expects, as the function itself spells it."""
    return [tuple(one) for one in expected] if name == "turned" else expected


def _rewritten(params: dict[str, Any], name: str, head: str, body: str) -> Iterator[Case]:
    whole = head + body
    for text in (
        whole,
        f"```python\n{whole}```",
        f"Here is my solution.\n\n```py\n{whole}```\nIt uses a loop.",
        f"First idea:\n```python\ndef {name}(*a):\n    return 0\n```\nBetter:\n```python\n{whole}```",
        f"```\n{whole}",
        f"<think>Maybe {name} is simple.</think>\n```python\n{whole}```",
        f"# no multiprocessing, no os.system, no eval here\n{whole}",
        f"{whole}\n\nif __name__ == '__main__':\n    raise SystemExit('not to be run')\n",
        f"{whole}\nprint('a line of noise')\n",
        f"from dataclasses import dataclass\n\n@dataclass\nclass Box:\n    inside: 'int' = 0\n\n{whole}",
        f"class Solution:\n    pass\n\n{whole}",
        f"```python\n{body}```",
        textwrap.dedent(body) if "\n    " not in body.strip("\n") else body,
    ):
        yield Case(kind="rewritten", params=params, response=text, passes=True)


def _programs() -> Iterator[Case]:
    for program, nearly, data in _PROGRAMS:
        params = {"cases": [{"stdin": stdin, "stdout": stdout} for stdin, stdout in data], "timeout": 5}
        yield Case(kind="gold", params=params, response=f"```python\n{program}```", passes=True, origin="gold")
        for text in (
            program,
            f"Sure:\n```python\n{program}```\nDone.",
            f"def main():\n{textwrap.indent(program, '    ')}\nmain()\n",
        ):
            yield Case(kind="rewritten", params=params, response=text, passes=True)
        yield Case(kind="rewritten", params=params, response=f"{program}import sys\nsys.exit(0)\n", passes=True)
        yield Case(kind="near miss", params=params, response=f"```python\n{nearly}```", passes=False)
        printed = f"print({data[0][1].strip()!r})\n"
        yield Case(kind="near miss", params=params, response=printed, passes=False)
        yield Case(kind="no-op", params=params, response="pass\n", passes=False)
        yield Case(kind="near miss", params=params, response=f"{program}print('and more')\n", passes=False)
        for text in ("raise SystemExit(0)\n", "import os\nos._exit(0)\n", f"{program}raise ValueError\n"):
            yield Case(kind="exploit", params=params, response=text, passes=False)
        yield from talk(params)


def _checked() -> Iterator[Case]:
    """A problem with several right answers, judged by its own checker."""
    checker = (
        "def check(args, expected, got):\n"
        "    (n,) = args\n"
        "    return isinstance(got, list) and len(got) == 2 and all(type(x) is int for x in got) and sum(got) == n\n"
    )
    params = {
        "entry_point": "parts",
        "cases": [{"args": [n], "expected": None} for n in (5, 10, -3)],
        "checker": checker,
        "timeout": 5,
    }
    for body in ("[0, n]", "[n - 1, 1]", "[n // 2, n - n // 2]"):
        yield Case(kind="several answers", params=params, response=f"def parts(n):\n    return {body}\n", passes=True)
    for body in ("[n]", "[n, n]", "[0, n + 1]", "'both'", "[0.5, n - 0.5]"):
        yield Case(kind="several answers", params=params, response=f"def parts(n):\n    return {body}\n", passes=False)
    # A checker that never ends on what came must not leave the policy without a verdict.
    counts = "def check(args, expected, got):\n    n = args[0]\n    while n % got == 0:\n        n //= got\n    return n == 1\n"
    endless = {
        "entry_point": "base",
        "cases": [{"args": [8], "expected": 2}],
        "checker": counts,
        "timeout": 1,
    }
    yield Case(kind="several answers", params=endless, response="def base(n):\n    return 2\n", passes=True)
    for got in ("1", "-1", "0", "[0] * 10 ** 6"):
        yield Case(kind="exploit", params=endless, response=f"def base(n):\n    return {got}\n", passes=False)


def _in_place() -> Iterator[Case]:
    """A function that changes its argument and returns nothing, by cases and by asserts; and lists that shrink."""
    by_cases: dict[str, Any] = {
        "entry_point": "order",
        "cases": [{"args": [xs], "expected": None, "after": [sorted(xs)]} for xs in ([3, 1, 2], [], [2, 2, 1])],
        "timeout": 5,
    }
    asserts = (
        "def check(candidate):\n    for xs in ([3, 1, 2], [], [2, 2, 1]):\n        was = list(xs)\n"
        "        assert candidate(xs) is None\n        assert xs == sorted(was)\n"
    )
    for params in (by_cases, {"entry_point": "order", "test": asserts, "timeout": 5}):
        for body in ("xs.sort()", "xs[:] = sorted(xs)", "ys = sorted(xs); xs.clear(); xs.extend(ys)"):
            yield Case(kind="in place", params=params, response=f"def order(xs):\n    {body}\n", passes=True)
        for body in ("pass", "return sorted(xs)", "xs = sorted(xs)", "xs.sort(); return xs", "xs.clear()"):
            yield Case(kind="in place", params=params, response=f"def order(xs):\n    {body}\n", passes=False)
        for body in ("xs.append(object())", "xs.sort = None", "xs.sort(reverse=True)"):
            yield Case(kind="in place", params=params, response=f"def order(xs):\n    {body}\n", passes=False)
    given = "def check(candidate):\n    xs = [3, 1, 2]\n    assert candidate(xs) == sorted(xs)\n"
    by_value = {"entry_point": "order", "test": given, "timeout": 5}
    yield Case(kind="in place", params=by_value, response="def order(xs):\n    return sorted(xs)\n", passes=True)
    for body in ("xs.clear(); return []", "xs.clear()", "xs[:] = [1]; return xs"):
        yield Case(kind="exploit", params=by_value, response=f"def order(xs):\n    {body}\n", passes=False)


def _sequences() -> Iterator[Case]:
    """What is as good as a list where a case expects one, and what asserts make of it."""
    by_cases = {"entry_point": "up_to", "cases": [{"args": [n], "expected": list(range(n))} for n in (3, 0, 2)]}
    listed = {"entry_point": "up_to", "test": "assert list(up_to(3)) == [0, 1, 2]\nassert list(up_to(0)) == []"}
    equal = {"entry_point": "up_to", "test": "assert up_to(3) == [0, 1, 2]\nassert up_to(0) == []"}
    again = {"entry_point": "up_to", "test": "assert up_to(3) == [0, 1, 2]\nassert up_to(up_to(3)[-1]) == [0, 1]"}
    for body in (
        "return range(n)",
        "yield from range(n)",
        "from collections import deque\n    return deque(range(n))",
        "return map(int, range(n))",
        "return tuple(range(n))",
        "return dict.fromkeys(range(n)).keys()",
    ):
        text = f"def up_to(n):\n    {body}\n"
        for params, passes in ((by_cases, True), (listed, True), (equal, False)):
            yield Case(kind="sequence", params={**params, "timeout": 5}, response=text, passes=passes)
    for body in (
        "return set(range(n))",
        "return iter(range(n)[::-1] or [1])",
        "return {i: i for i in range(n)}",
        "return ''.join(map(str, range(n)))",
        "i = 0\n    while True:\n        yield i\n        i += 1",
        "return range(10 ** 30)",
    ):
        text = f"def up_to(n):\n    {body}\n"
        yield Case(kind="sequence", params={**by_cases, "timeout": 5}, response=text, passes=False)
    # Nobody may choose to have no verdict by what the tests hand on.
    for body in ("return iter(range(n))", "x = []\n    for _ in range(99): x = [x]\n    return x"):
        text = f"def up_to(n):\n    {body}\n"
        yield Case(kind="exploit", params={**again, "timeout": 5}, response=text, passes=False)
        wrapped = "assert isinstance(up_to(3), object)\nassert up_to([[up_to(3)]]) == 1"
        handed = {"entry_point": "up_to", "test": wrapped, "timeout": 5}
        yield Case(kind="exploit", params=handed, response=text.replace("range(n)", "range(3)"), passes=False)


def _shown() -> Iterator[Case]:
    """One function, shown in all ways, beside blocks that are not the answer."""
    name, head, body, nearly, data = _FUNCTIONS[0]
    right, wrong = head + body, head + nearly
    params: dict[str, Any] = {
        "entry_point": name,
        "cases": [{"args": args, "expected": expected} for args, expected in data],
        "timeout": 5,
    }
    in_list = textwrap.indent(right, "    ")
    for text in (
        f"~~~python\n{right}~~~\nThat is it.",
        f"````python\n{right}````",
        f"````markdown\n# Answer\n```python\n{right}```\n````",
        f"1. Write this:\n\n    ```python\n{in_list}    ```\n2. Run it.",
        f"- Write this:\n    ~~~\n{in_list}    ~~~\n",
        f"```python\n{right}```\nWrong way:\n```python\n{wrong}```",
        f"```python\n{right}```\n### A common mistake\n\n```python\n{wrong}```\nIt subtracts.",
        f"```python\n{right}```\n\n```python\n# Incorrect\n{wrong}```",
        f"The first try was wrong:\n```python\n{wrong}```\nThe wrong sign is fixed here:\n```python\n{right}```",
        f"Wrong:\n```python\n{right}```",
        f"```python\n{right}```\nIt prints:\n```\n3\n```",
        f"```python\ndef plus(x, y):\n    return x + y\n```\nand\n```python\ndef {name}(a, b):\n    return plus(a, b)\n```",
        f"<answer>```python\n{right}```</answer>",
    ):
        yield Case(kind="shown", params=params, response=text, passes=True)
    for text in (
        f"```python\n{right}```\nBetter:\n```python\n{wrong}```",
        f"```python\n{right}```\n```python\n{wrong}```",
        f"Wrong way:\n```python\n{right}```\nRight way:\n```python\n{wrong}```",
        f"Wrong:\n```python\n{right}```\nWrong:\n```python\n{wrong}```",
        f"~~~text\n{right}~~~\n",
    ):
        yield Case(kind="shown", params=params, response=text, passes=False)


def _limits() -> Iterator[Case]:
    """Code that takes what it can; each is wrong, and none may hold up the others."""
    params = {"entry_point": "f", "cases": [{"args": [], "expected": 1}], "timeout": 1, "memory_mb": 256}
    for body in (
        "    while True: pass\n",
        "    import time\n    time.sleep(60)\n    return 1\n",
        "    x = []\n    while True: x.append(bytearray(1 << 20))\n",
        "    return bytearray(1 << 40)\n",
        "    while True: print('x' * 1000)\n",
        "    import os\n    while True: os.fork()\n",
        "    import subprocess\n    subprocess.run(['true'])\n    return 1\n",
        "    import socket\n    socket.socket()\n    return 1\n",
        "    open('/tmp/metier-audit', 'w').write('x')\n    return 1\n",
        "    return open('/etc/passwd').read() and 1\n",
        "    import os\n    os.kill(os.getppid(), 9)\n    return 1\n",
        "    return 10 ** 10 ** 9\n",
    ):
        yield Case(kind="exploit", params=params, response=f"def f():\n{body}", passes=False)
