"""Run by the harnesses' Python: Inspect's tasks as a family, on tasks that fit and tasks that do not."""

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import choice, exact, includes, match, model_graded_qa
from inspect_ai.solver import generate, multiple_choice, prompt_template, system_message, use_tools
from inspect_ai.tool import tool


@tool
def look():
    async def execute(number: int) -> str:
        """Look a number up.

        Args:
            number: The number.
        """
        return str(number)

    return execute


SUMS = [Sample(input=f"What is {n} plus {n}?", target=str(2 * n), id=f"s{n}") for n in range(1, 41)]


@task
def sums(n: int = 40):
    return Task(
        dataset=SUMS[:n],
        solver=[system_message("Be brief."), prompt_template("{prompt}\nOnly the number."), generate()],
        scorer=match(numeric=True),
    )


@task
def choices():
    samples = [Sample(input="Which is a fruit?", choices=["a car", "a pear", "a hat"], target="B")]
    return Task(dataset=samples, solver=multiple_choice(), scorer=choice())


@task
def talk():
    said = [ChatMessageSystem(content="Be kind."), ChatMessageUser(content="Say hello.")]
    return Task(dataset=[Sample(input=said, target=["hello", "hi"])], scorer=[includes(), exact()])


@task
def graded():
    return Task(dataset=SUMS, scorer=model_graded_qa())


@task
def tooled():
    return Task(dataset=SUMS, solver=[use_tools(look()), generate()], scorer=match())


@task
def twice():
    return Task(dataset=SUMS, solver=[generate(), generate()], scorer=match())


@task
def boxed():
    return Task(dataset=SUMS, scorer=match(), sandbox="local")


@task
def silent():
    return Task(dataset=SUMS, solver=[system_message("x")], scorer=match())


def plain():
    return 3


def main() -> None:
    from family_checks import check_refused, check_splits, verdict

    from metier.tasks.registry import get_family

    def family(name: str, **arguments: int):
        return get_family("inspect", {"task": f"{__file__}:{name}", "arguments": arguments})

    check_splits(family, "sums")
    made = family("sums").tasks("all", 100, 1)
    one = next(t for t in made if t.answer["target"] == "14")
    assert [m.role for m in one.messages] == ["system", "user"]
    assert one.messages[1].content == "What is 7 plus 7?\nOnly the number."
    assert (verdict(one, "14").score, verdict(one, "It is 14.").score, verdict(one, "15").score) == (1.0, 1.0, 0.0)

    (one,) = family("choices").tasks("all", 5, 1)
    assert "A) a car" in one.messages[0].content and "B) a pear" in one.messages[0].content
    assert (verdict(one, "ANSWER: B").score, verdict(one, "ANSWER: A").score) == (1.0, 0.0)

    (one,) = family("talk").tasks("all", 5, 1)
    assert [m.content for m in one.messages] == ["Be kind.", "Say hello."]
    found = verdict(one, "hello you")
    assert (found.score, found.parts) == (0.0, {"includes": 1.0, "exact": 0.0})
    assert verdict(one, "hello").score == 1.0

    check_refused(family, (
        ("graded", "is scored by a model"), ("tooled", "uses tools"), ("twice", "asks the model 2 times"),
        ("boxed", "needs a sandbox"), ("silent", "never asks the model"), ("nothing", "there is no task of Inspect"),
        ("plain", "returns no inspect_ai.Task"),
    ))  # fmt: skip
    print("all held")


if __name__ == "__main__":
    main()
