"""Answers in steps: rows out of what was said of turns and of spans.

A step is an assistant's turn, or a line of the last one. A mark on a turn or on words is about every step that
it touches; a good label on the whole answer is about all of its steps, a bad one says not where. Rows hold plain
text, as `metier train` reads steps, so answers that call tools make none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metier.base.errors import DataError
from metier.feedback.data.declaration import StepView
from metier.feedback.data.pooling import Pooled, Vote, pool, source_key, weight_of
from metier.feedback.data.rows import Row, answered
from metier.feedback.data.selecting import batches, load, places, statements, usable
from metier.feedback.data.views import Made, row_of, why_absent, why_unusable
from metier.records.types import Episode, Feedback, Message, Task
from metier.records.view import LedgerView

__all__ = ["step_rows"]

_APART = "\n"
_Step = tuple[int, int, int, str]  # the message, where the step begins and ends in it, what it says


def step_rows(ledger: LedgerView, view: StepView) -> Made:
    """Rows of answers whose steps are known to be right or wrong."""
    made = Made()
    by_episode: dict[str, list[Feedback]] = {}
    for one in statements(ledger, view.where, ("label", "score")):
        if len(one.about) != 1:
            continue
        if not usable(one):
            made.left[why_unusable(one)] += 1
        elif _label(one, view) is not None:
            by_episode.setdefault(one.about[0], []).append(one)
    known = places(ledger, by_episode, view.where.splits)
    votes: list[Vote] = []
    ids = list(by_episode)
    for some in batches(ids):
        episodes, tasks = load(ledger, (one for one in some if one in known))
        for episode_id in some:
            episode = episodes.get(episode_id)
            if episode is None:
                made.left[why_absent(episode_id, known)] += 1
                continue
            try:
                _, steps = _steps(tasks[episode.task_id], episode, view)
            except DataError as error:
                made.left[str(error)] += 1
                continue
            votes += _votes(by_episode[episode_id], steps, view)
    verdicts, left = pool(votes, view.pool)
    made.left.update(left)
    at = {one.id: one.created_at for told in by_episode.values() for one in told}
    told_of = dict.fromkeys(vote.item.split(_APART)[0] for vote in votes)
    for some in batches(list(told_of)):
        episodes, tasks = load(ledger, some)
        for episode_id in some:
            if (episode := episodes.get(episode_id)) is not None:
                made.keep(_row, tasks[episode.task_id], episode, view, verdicts, at)
    return made


def _row(task: Task, episode: Episode, view: StepView, verdicts: dict[str, Pooled], at: dict[str, float]) -> Row:
    prompt, steps = _steps(task, episode, view)
    told: list[Pooled] = []
    for number in range(len(steps)):
        verdict = verdicts.get(f"{episode.id}{_APART}{number}")
        if verdict is None:
            break  # what comes behind a step that nobody judged is not known to stand on it
        told.append(verdict)
    if not told:
        raise DataError("nothing is known of the first step")
    labels = [verdict.label == "good" for verdict in told]
    data = {
        "prompt": "\n\n".join(message.content for message in prompt),
        "completions": [text for _, _, _, text in steps[: len(told)]],
        "labels": labels,
    }
    ids = tuple(dict.fromkeys(one for verdict in told for one in verdict.feedback_ids))
    return row_of(
        data, task, [episode], ids, sorted({one for verdict in told for one in verdict.sources}),
        min(one.support for one in told), min(one.confidence for one in told), max(at[one] for one in ids),
        label="good" if all(labels) else "bad",
    )  # fmt: skip


def _steps(task: Task, episode: Episode, view: StepView) -> tuple[tuple[Message, ...], list[_Step]]:
    """What was asked, and the steps of the answer."""
    prompt, answer = answered(task, episode)
    if any(message.tool_calls for message in answer):
        raise DataError("it calls tools, which rows of steps cannot hold")
    start = len(prompt)
    turns = [(start + n, m) for n, m in enumerate(answer) if m.role == "assistant" and m.content.strip()]
    if not turns:
        raise DataError("nobody answers in the episode")
    if view.step == "turn":
        return prompt, [(turn, 0, len(message.content), message.content) for turn, message in turns]
    turn, last = turns[-1]
    found, place = [], 0
    for line in last.content.splitlines(keepends=True):
        if line.strip():
            found.append((turn, place, place + len(line), line.strip()))
        place += len(line)
    return episode.messages[:turn], found


def _votes(told: Sequence[Feedback], steps: Sequence[_Step], view: StepView) -> Iterator[Vote]:
    """What each source says of each step; where it marked one step both ways, that something is wrong counts."""
    marks: dict[str, dict[int, tuple[str, str]]] = {}
    weights: dict[str, float] = {}
    for one in told:
        who, label = source_key(one.source), _label(one, view)
        assert label is not None
        weights[who] = weight_of(one.source, view.pool.weights)
        mine = marks.setdefault(who, {})
        for number in _touched(one, label, steps):
            if mine.get(number, ("good", ""))[0] == "good":
                mine[number] = (label, one.id)
    for who, mine in marks.items():
        seen = next(one.id for one in told if source_key(one.source) == who)
        for number in range(len(steps)):
            found = mine.get(number) or (("good", seen) if view.unmarked == "good" else None)
            if found is not None:
                yield Vote(f"{told[0].about[0]}{_APART}{number}", who, found[0], weights[who], (found[1],))


def _touched(one: Feedback, label: str, steps: Sequence[_Step]) -> list[int]:
    span = one.span
    if span is None:
        return list(range(len(steps))) if label == "good" else []
    start, end = span.start or 0, span.end
    return [
        number
        for number, (turn, first, last, _) in enumerate(steps)
        if turn == span.turn and start < last and (end is None or first < end)
    ]


def _label(one: Feedback, view: StepView) -> str | None:
    if one.kind == "score":
        return "good" if one.value >= view.good else "bad" if one.value <= view.bad else None
    return "good" if one.value in view.good_labels else "bad" if one.value in view.bad_labels else None
