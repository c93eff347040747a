"""Which tasks the report shows side by side, by a stated rule and not by taste, and what became of all of them.

All tasks that the first and the last model tried are put in an order drawn from the run's seed. Then `PLACES` places
are dealt in turns over kinds of work, and within a kind over what happened from the first model to the last (lost,
wrong, gained, right, unscored), so that failures are always among them. Three places in five go to the first rung,
the rest to the others. Behind these come all other tasks on which any two models differ, and then the rest, dealt
likewise, until their transcripts fill `ROOM` bytes of the page; the rule says how many were left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metier.base.seeds import derive_seed
from metier.feedback.verify import SUCCESS
from metier.records.transcript import Turn, as_html, turns
from metier.records.types import Episode, Feedback, Task
from metier.report.data import Case, Column, Flips, Outcome, Path
from metier.report.measured import MeasuredModel, is_right
from metier.report.wording import count, title_of

__all__ = ["KINDS", "PLACES", "ROOM", "Candidate", "candidates", "flips", "pick", "rule", "side_by_side"]

PLACES = 20  # dealt over kinds and outcomes, before all that changed
ROOM = 2_500_000  # bytes of transcripts as HTML
FRAME = 900  # bytes around a case's transcripts, and around each of its columns at most
TURN: tuple[Path, ...] = ("wrong", "gained", "lost", "right", "unscored")
KINDS = {
    "lookup": "Look up and answer",
    "act": "Act with one call",
    "several": "Several calls in order",
    "ask": "Ask for what is missing",
    "decline": "Decline or not (twins)",
    "answer": "Answer without a tool",
    "handover": "Hand over to a person",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A task that the first and the last model tried."""

    task_id: str
    kind: str
    split: str
    path: Path
    differs: bool = False  # whether any two models differ on it


def rule(seed: int, shown: int, of: int) -> str:
    """The rule in words, for the page."""
    which = f"{count(shown)} of {count(of)} tasks" if shown < of else f"All {count(of)} tasks" if of > 1 else "The task"
    head = (
        f"{which} that the first and the last model tried, first attempts only. Not picked by hand: a fixed rule deals"
        " the first places in turns over kinds of work and over outcomes, failures included, in an order drawn from"
        f" seed {seed}."
    )
    if of <= PLACES:
        return head
    left = f" {count(of - shown)} were left out to keep this page small." if shown < of else ""
    return f"{head} Then come all others on which models differ, then the rest.{left}"


def candidates(measured: Sequence[MeasuredModel], splits: Sequence[str], tasks: Mapping[str, Task]) -> list[Candidate]:
    """Every task that the first and the last model tried."""
    out: list[Candidate] = []
    for split in splits if measured else ():
        before, after = measured[0].values.get(split, {}), measured[-1].values.get(split, {})
        for task_id in before:
            if task_id in after:
                tries = [
                    _outcome(one.values[split][task_id][0]) for one in measured if task_id in one.values.get(split, {})
                ]
                scored = {outcome for outcome in tries if outcome != "unscored"}
                out.append(
                    Candidate(
                        task_id=task_id,
                        kind=tasks[task_id].kind,
                        split=split,
                        path=_path(before[task_id][0], after[task_id][0]),
                        differs=len(scored) > 1,
                    )
                )
    return out


def flips(found: Sequence[Candidate], splits: Sequence[str]) -> tuple[Flips, ...]:
    """How many tasks of each split went which way."""
    counted: dict[str, Counter[Path]] = {}
    for one in found:
        counted.setdefault(one.split, Counter())[one.path] += 1
    return tuple(Flips(split=s, label=title_of(s), counts=dict(counted[s])) for s in splits if s in counted)


def pick(found: Sequence[Candidate], splits: Sequence[str], *, seed: int, places: int = PLACES) -> list[Candidate]:
    """At most `places` candidates, by the rule above; `splits` in the order of the ladder."""
    if not splits or not found:
        return []
    order = sorted(found, key=lambda c: derive_seed(seed, "report-cases", c.task_id))
    first = [c for c in order if c.split == splits[0]]
    rest = [c for c in order if c.split != splits[0]]
    share = places if not rest else max(-(-places * 3 // 5), places - len(rest))
    chosen = _deal(first, share)
    by_split = [_deal([c for c in rest if c.split == split], places) for split in splits[1:]]
    chosen += _round_robin(by_split)[: places - len(chosen)]
    return chosen


def _in_order(found: Sequence[Candidate], splits: Sequence[str], seed: int) -> list[Candidate]:
    """All of them, in the order in which they get a place on the page."""
    out = pick(found, splits, seed=seed)
    for wanted in (True, False):
        taken = {(one.split, one.task_id) for one in out}
        more = [one for one in found if one.differs == wanted and (one.split, one.task_id) not in taken]
        out += pick(more, splits, seed=seed, places=len(more))
    return out


def side_by_side(
    found: Sequence[Candidate],
    measured: Sequence[MeasuredModel],
    splits: Sequence[str],
    tasks: Mapping[str, Task],
    feedback: Sequence[Feedback],
    *,
    seed: int,
    room: int = ROOM,
) -> tuple[Case, ...]:
    """The cases in their order, with what every model did; as many as fit into `room`, one at least."""
    said = {row.about[0]: row for row in feedback if row.criterion == SUCCESS}
    first: list[dict[tuple[str, str], Episode]] = []
    for one in measured:
        attempts: dict[tuple[str, str], Episode] = {}
        for episode in one.episodes:
            attempts.setdefault((episode.split, episode.task_id), episode)
        first.append(attempts)
    out: list[Case] = []
    used = 0
    for candidate in _in_order(found, splits, seed):
        case = _case(candidate, measured, first, tasks[candidate.task_id], said)
        used += _bytes(case)
        if out and used > room:
            break
        out.append(case)
    return tuple(out)


def _case(
    candidate: Candidate,
    measured: Sequence[MeasuredModel],
    first: Sequence[Mapping[tuple[str, str], Episode]],
    task: Task,
    said: Mapping[str, Feedback],
) -> Case:
    columns = []
    for place, one in enumerate(measured):
        tried = first[place].get((candidate.split, candidate.task_id))
        if tried is not None:  # models between the first and the last may have tried less
            value = one.values[candidate.split][candidate.task_id][0]
            columns.append(_column(place, tried, task, value, said.get(tried.id)))
    users = [message.content for message in task.messages if message.role == "user"]
    desk = task.meta.get("desk")
    return Case(
        task_id=candidate.task_id,
        kind=candidate.kind,
        kind_label=KINDS.get(candidate.kind, title_of(candidate.kind)),
        split=candidate.split,
        split_label=title_of(candidate.split),
        desk=title_of(desk) if isinstance(desk, str) else "",
        opening=users[-1] if users else "(the text of this task was erased)",
        setup=turns(task.messages),
        tools=tuple((tool.name, tool.description) for tool in task.tools),
        columns=tuple(columns),
        path=candidate.path,
    )


def _column(model: int, episode: Episode, task: Task, value: float | None, said: Feedback | None) -> Column:
    outcome = _outcome(value)
    parts = {} if said is None else said.evidence.get("parts")
    reason = episode.error or "" if outcome == "unscored" else ""
    return Column(
        model=model,
        episode_id=episode.id,
        outcome=outcome,
        reason=(said.reason if said is not None and said.reason else reason),
        parts=tuple((str(name), float(score)) for name, score in parts.items()) if isinstance(parts, dict) else (),
        turns=turns(episode.messages[len(task.messages) :], tools=task.tools),
        tokens=episode.cost.completion_tokens,
        stop=episode.stop_reason,
    )


def _bytes(case: Case) -> int:
    """About how much of the page a case takes, rather more than less."""
    tools = sum(len(name) + 2 * len(text) + 40 for name, text in case.tools)
    columns = sum(FRAME + 2 * len(column.reason) + _size(column.turns) for column in case.columns)
    return FRAME + _size(case.setup) + tools + columns


def _size(shown: Sequence[Turn]) -> int:
    return len(as_html(shown).encode())


def _outcome(value: float | None) -> Outcome:
    return "unscored" if value is None else "right" if is_right(value) else "wrong"


def _path(before: float | None, after: float | None) -> Path:
    if before is None or after is None:
        return "unscored"
    if is_right(after):
        return "right" if is_right(before) else "gained"
    return "lost" if is_right(before) else "wrong"


def _deal(ordered: Sequence[Candidate], places: int) -> list[Candidate]:
    """In turns over kinds; within a kind in turns over paths, each kind starting at another path."""
    hands = []
    for start, kind in enumerate(sorted({c.kind for c in ordered})):
        turn = [TURN[(start + offset) % len(TURN)] for offset in range(len(TURN))]
        piles = [[c for c in ordered if c.kind == kind and c.path == path] for path in turn]
        hands.append(_round_robin(piles))
    return _round_robin(hands)[:places]


def _round_robin(piles: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    longest = max((len(pile) for pile in piles), default=0)
    return [pile[place] for place in range(longest) for pile in piles if place < len(pile)]
