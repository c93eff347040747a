"""Run by a Python that has verifiers: its tasksets as a family, some that fit and some that do not."""

from __future__ import annotations

import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: str = ""


class Sum(vf.Task[SumData]):
    @vf.reward(weight=2.0)
    async def right(self, task, trace) -> float:
        return float(task.answer in trace.last_reply.split())

    @vf.reward(weight=0.0)
    async def brief(self, trace) -> float:
        return 1.0 / len(trace.assistant_messages[-1].content.split())


class SumsConfig(vf.TasksetConfig):
    n: int = 40


class Sums(vf.Taskset[Sum, SumsConfig]):
    def load(self):
        for n in range(1, self.config.n + 1):
            data = SumData(prompt=f"{n} + {n}?", answer=str(2 * n), system_prompt="Be brief.")
            yield Sum(data, self.config.task)


class Plain(vf.Taskset[Sum, SumsConfig]):
    made = Sum
    prompt = "Hi"

    def load(self):
        yield self.made(SumData(prompt=self.prompt))


class NeedsRuntime(Sum):
    @vf.reward
    async def built(self, runtime) -> float:
        return 1.0


class SetsUp(Sum):
    async def setup(self, trace, runtime) -> None:
        return None


class Contained(Sum):
    NEEDS_CONTAINER = True


class Unrewarded(vf.Task[SumData]):
    pass


class Breaks(Sum):
    @vf.reward
    async def broken(self, trace) -> float:
        raise ZeroDivisionError("no")


class OfRuntime(Plain):
    made = NeedsRuntime


class OfSetUp(Plain):
    made = SetsUp


class OfContainer(Plain):
    made = Contained


class OfNothing(Plain):
    made = Unrewarded


class OfUser(Plain):
    prompt = None


class OfBroken(Plain):
    made = Breaks


def main() -> None:
    from family_checks import check_refused, check_splits, verdict

    from metier.base.errors import ConfigError
    from metier.tasks.registry import get_family

    def family(name: str, **config: int):
        return get_family("verifiers", {"taskset": f"{__file__}:{name}", "config": config})

    check_splits(family, "Sums")
    made = family("Sums").tasks("all", 100, 1)
    one = next(t for t in made if t.messages[-1].content == "7 + 7?")
    assert [(m.role, m.content) for m in one.messages] == [("system", "Be brief."), ("user", "7 + 7?")]
    good, bad = verdict(one, "It is 14"), verdict(one, "15")
    assert (good.score, good.parts["right"], round(good.parts["brief"], 3)) == (1.0, 1.0, 0.333), good
    assert (bad.score, bad.parts) == (0.0, {"right": 0.0, "brief": 1.0}), bad
    (broken,) = family("OfBroken").tasks("all", 1, 1)
    assert verdict(broken, "14").status == "unscored"

    check_refused(family, (
        ("OfRuntime", "has a reward that needs a runtime"), ("OfSetUp", "sets a runtime up"),
        ("OfContainer", "needs a container"), ("OfNothing", "has no reward"),
        ("OfUser", "begins with a user's own words"),
        ("Nothing", "there is no taskset of verifiers"), ("Sum", "is no Taskset"),
    ))  # fmt: skip
    try:
        family("Sums", m=3)
    except ConfigError as error:
        assert "refuses" in str(error), error
    print("all held")


if __name__ == "__main__":
    main()
