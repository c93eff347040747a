"""From statements to rows: one function for each kind of view.

Every function reads the ledger, pools what several sources say, and makes rows in the order of the ledger, so
that the same ledger gives the same rows. What makes no row is counted with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec

from metier.base.errors import DataError
from metier.feedback.data.declaration import DemonstrationView, PairView, UnpairedView, Where
from metier.feedback.data.pooling import (
    VERIFIERS,
    Pooled,
    Vote,
    of_code,
    pool,
    scored_values,
    source_key,
    weight_of,
)
from metier.feedback.data.rows import Row, answered, messages_of, plain, tools_of
from metier.feedback.data.selecting import Place, batches, load, places, statements, usable
from metier.records.types import Episode, Feedback, Message, Task
from metier.records.view import LedgerView

__all__ = ["Made", "demonstrations", "pairs", "row_of", "unpaired", "why_absent", "why_unusable"]

P = ParamSpec("P")

_SAID_APART = "\n"  # between an episode's id and what of it is judged; no id has one


@dataclass(slots=True)
class Made:
    """The rows of a view, and how many could have been and why they are not."""

    rows: list[Row] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)

    def keep(self, make: Callable[P, Row], *args: P.args, **named: P.kwargs) -> None:
        """Add the row that `make` makes of these, or count why it cannot."""
        try:
            self.rows.append(make(*args, **named))
        except DataError as error:
            self.left[str(error)] += 1


def demonstrations(ledger: LedgerView, view: DemonstrationView) -> Made:
    """Rows of what should have been said."""
    made = Made()
    told: list[Feedback] = []
    for one in statements(ledger, view.where, [kind for kind in view.take if kind != "score"]):
        if not usable(one):
            made.left[why_unusable(one)] += 1
        elif one.kind == "correction" and one.source.kind == "judge":
            made.left["a correction by a judge, which nobody compared"] += 1
        else:
            told.append(one)
    known = places(ledger, (one.about[0] for one in told), view.where.splits)
    checks = _checks(ledger, view)
    weights = view.pool.weights
    for some in batches(told):
        episodes, tasks = load(ledger, (one.about[0] for one in some if one.about[0] in known))
        for one in some:
            episode = episodes.get(one.about[0])
            failed = checks.get(one.about[0]) if one.kind == "demonstration" else None
            if episode is None:
                made.left[why_absent(one.about[0], known)] += 1
            elif failed is not None and failed < view.good:
                made.left["it fails " + " and ".join(view.checked_by)] += 1
            else:
                task = tasks[episode.task_id]
                made.keep(_shown, one, episode, task, weight_of(one.source, weights))
    if "score" in view.take:
        _well_scored(ledger, view, made)
    return made


def _shown(one: Feedback, episode: Episode, task: Task, support: float) -> Row:
    prompt, _ = answered(task, episode, None if one.span is None else one.span.turn)
    data = {"prompt": plain(prompt), "completion": plain(messages_of(one.value)), **tools_of(task)}
    return row_of(data, task, [episode], [one.id], [source_key(one.source)], support, one.confidence, one.created_at)


def _well_scored(ledger: LedgerView, view: DemonstrationView, made: Made) -> None:
    told = list(statements(ledger, view.where, ["score"]))
    values = scored_values(told, view.pool.weights)
    at, who = _written(told)
    good = {episode: ids for episode, (value, ids) in values.items() if value is not None and value >= view.good}
    made.left["a score that is not known yet"] += sum(value is None for value, _ in values.values())
    made.left["a score below what is good"] += len(values) - len(good) - sum(v is None for v, _ in values.values())
    known = places(ledger, good, view.where.splits)
    for some in batches(list(good)):
        episodes, tasks = load(ledger, (one for one in some if one in known))
        for episode_id in some:
            episode = episodes.get(episode_id)
            if episode is None:
                made.left[why_absent(episode_id, known)] += 1
                continue
            ids = good[episode_id]
            sources, when = sorted({who[one] for one in ids}), max(at[one] for one in ids)
            made.keep(_own_answer, episode, tasks[episode.task_id], ids, sources, when)


def _own_answer(episode: Episode, task: Task, ids: Sequence[str], sources: Sequence[str], at: float) -> Row:
    prompt, answer = answered(task, episode)
    data = {"prompt": plain(prompt), "completion": plain(answer), **tools_of(task)}
    return row_of(data, task, [episode], ids, sources, float(len(sources)), None, at)


def _checks(ledger: LedgerView, view: DemonstrationView) -> dict[str, float | None]:
    if not view.checked_by:
        return {}
    where = Where(criteria=view.checked_by, but_sources=view.where.but_sources)
    values = scored_values(statements(ledger, where, ["score"]), view.pool.weights)
    return {episode: value for episode, (value, _) in values.items()}


# --- pairs ---------------------------------------------------------------------------------


def pairs(ledger: LedgerView, view: PairView) -> Made:
    """Rows of a better and a worse answer."""
    made = Made()
    told: list[tuple[str, str, bool, Feedback]] = []
    corrections: list[Feedback] = []
    at: dict[str, float] = {}
    for one in statements(ledger, view.where, [kind for kind in view.take if kind != "score"]):
        if not usable(one):
            made.left[why_unusable(one)] += 1
        elif one.kind != "correction":
            told += [(*sides, one) for sides in _compared(one)]
            at[one.id] = one.created_at
        elif one.source.kind == "judge":
            made.left["a correction by a judge, which nobody compared"] += 1
        else:
            corrections.append(one)
    known = places(ledger, (episode for better, worse, *_ in told for episode in (better, worse)), view.where.splits)
    votes = [_vote(*one, known, view) for one in told if one[0] in known and one[1] in known]
    items = {frozenset((better, worse)) for better, worse, *_ in told}
    made.left["of a split that is not declared"] += len(items) - len({vote.item for vote in votes})
    verdicts, left = pool(votes, view.pool)
    made.left.update(left)
    decided = []
    for item, verdict in verdicts.items():
        first, second = item.split(_SAID_APART)
        if verdict.label == "tie":
            made.left["neither is better"] += 1
        elif known[first].task_id != known[second].task_id:
            made.left["the answers are to different tasks"] += 1
        else:
            decided.append((first, second, verdict) if verdict.label == "first" else (second, first, verdict))
    for some in batches(decided):
        episodes, tasks = load(ledger, (one for better, worse, _ in some for one in (better, worse)))
        for better, worse, verdict in some:
            if better not in episodes or worse not in episodes:
                made.left["the episode was erased"] += 1
                continue
            sides, task = (episodes[better], episodes[worse]), tasks[known[better].task_id]
            when = max(at[one] for one in verdict.feedback_ids)
            made.keep(_pair, sides, task, verdict, view, when)
    _corrected(ledger, view, corrections, made)
    if "score" in view.take:
        _scored_apart(ledger, view, made)
    return made


def _compared(one: Feedback) -> Iterator[tuple[str, str, bool]]:
    """Each two answers that it speaks of: the better one, the worse one, and whether it calls them alike."""
    if one.kind == "ranking":
        order = [one.about[place] for place in one.value]
        found = [(order[i], order[j], False) for i in range(len(order)) for j in range(i + 1, len(order))]
    elif one.value == 0.5:
        found = [(one.about[0], one.about[1], True)] if len(one.about) == 2 else []
    else:
        best = one.about[int(one.value)]
        found = [(best, other, False) for other in one.about if other != best]
    return ((better, worse, alike) for better, worse, alike in found if better != worse)


def _vote(better: str, worse: str, alike: bool, one: Feedback, known: Mapping[str, Place], view: PairView) -> Vote:
    """Of two answers in the order of the ledger, so that all sources mean the same, and nothing depends on ids."""
    first, second = sorted((better, worse), key=lambda episode: known[episode].seq)
    label = "tie" if alike else "first" if better == first else "second"
    item = _SAID_APART.join((first, second))
    return Vote(item, source_key(one.source), label, weight_of(one.source, view.pool.weights), (one.id,))


def _pair(sides: tuple[Episode, Episode], task: Task, verdict: Pooled, view: PairView, at: float) -> Row:
    (prompt, chosen), (other, rejected) = answered(task, sides[0]), answered(task, sides[1])
    if prompt != other:
        raise DataError("the answers are to different conversations")
    data = {**_sides(prompt, chosen, rejected), **tools_of(task), "confidence": round(verdict.confidence, 6)}
    if view.margin:
        data["margin"] = round(view.margin * verdict.margin, 6)
    if view.weigh:
        data["weight"] = round(max(0.0, 2 * verdict.confidence - 1), 6)
    return row_of(data, task, sides, verdict.feedback_ids, verdict.sources, verdict.support, verdict.confidence, at)


def _sides(prompt: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]) -> dict[str, Any]:
    if tuple(chosen) == tuple(rejected):
        raise DataError("both sides say the same")
    return {"prompt": plain(prompt), "chosen": plain(chosen), "rejected": plain(rejected)}


def _corrected(ledger: LedgerView, view: PairView, told: Sequence[Feedback], made: Made) -> None:
    """What somebody made of an answer, against what it was."""
    known = places(ledger, (one.about[0] for one in told), view.where.splits)
    for some in batches(told):
        episodes, tasks = load(ledger, (one.about[0] for one in some if one.about[0] in known))
        for one in some:
            episode = episodes.get(one.about[0])
            if episode is None:
                made.left[why_absent(one.about[0], known)] += 1
                continue
            made.keep(_against_what_was, one, episode, tasks[episode.task_id], weight_of(one.source, view.pool.weights))


def _against_what_was(one: Feedback, episode: Episode, task: Task, support: float) -> Row:
    prompt, was = answered(task, episode, None if one.span is None else one.span.turn)
    better = messages_of(one.value)
    data = {**_sides(prompt, better, was[: len(better)]), **tools_of(task)}
    return row_of(data, task, [episode], [one.id], [source_key(one.source)], support, None, one.created_at)


def _scored_apart(ledger: LedgerView, view: PairView, made: Made) -> None:
    """The best against the worst scored answer of each task."""
    told = list(statements(ledger, view.where, ["score"]))
    values = scored_values(told, view.pool.weights)
    at, who = _written(told)
    known = places(ledger, values, view.where.splits)
    by_task: dict[str, list[tuple[float, str]]] = {}
    for episode, (value, _) in values.items():
        if value is None:
            made.left["a score that is not known yet"] += 1
        elif episode in known:
            by_task.setdefault(known[episode].task_id, []).append((value, episode))
    chosen = []
    for found in by_task.values():
        (high, best), (low, worst) = max(found, key=lambda one: one[0]), min(found, key=lambda one: one[0])
        if high - low >= view.gap:
            chosen.append((best, worst, high - low))
        else:
            made.left["no two scores of the task are apart"] += 1
    for some in batches(chosen):
        episodes, tasks = load(ledger, (one for better, worse, _ in some for one in (better, worse)))
        for better, worse, gap in some:
            if better not in episodes or worse not in episodes:
                made.left["the episode was erased"] += 1
                continue
            ids = (*values[better][1], *values[worse][1])
            verdict = Pooled(
                label="first",
                confidence=1.0,
                margin=gap,
                support=1.0,
                sources=tuple(sorted({who[one] for one in ids})),
                feedback_ids=ids,
            )
            sides, task = (episodes[better], episodes[worse]), tasks[known[better].task_id]
            when = max(at[one] for one in ids)
            made.keep(_pair, sides, task, verdict, view, when)


# --- single answers ------------------------------------------------------------------------


def unpaired(ledger: LedgerView, view: UnpairedView) -> Made:
    """Rows of single answers, good or bad. One that is asked several criteria is good where it is so by all."""
    made = Made()
    told = [one for one in statements(ledger, view.where, view.take) if len(one.about) == 1 and one.span is None]
    good, bad = _bounds(view, told)
    votes: dict[tuple[str, str], list[Vote]] = {}
    code: dict[tuple[str, str], list[Feedback]] = {}
    asked: dict[str, set[str]] = {}
    for one in told:
        key = one.about[0], one.criterion
        if one.kind == "score" and of_code(one.source):
            code.setdefault(key, []).append(one)
        elif not usable(one):
            made.left[why_unusable(one)] += 1
            continue
        elif (label := _label_of(one, view, good, bad)) is not None:
            weight = weight_of(one.source, view.pool.weights)
            votes.setdefault(key, []).append(
                Vote(_SAID_APART.join(key), source_key(one.source), label, weight, (one.id,))
            )
        else:
            made.left[f"a label that is neither good nor bad: {str(one.value)[:40]}"] += 1
            continue
        asked.setdefault(one.about[0], set()).add(one.criterion)
    for key, rows in code.items():
        values = [one.value for one in rows]
        if any(value is None for value in values):
            made.left["a verifier that could not say"] += 1
            votes.pop(key, None)
            continue
        label = "good" if min(values) >= good else "bad" if min(values) <= bad else "between"
        vote = Vote(_SAID_APART.join(key), VERIFIERS, label, 1.0, tuple(one.id for one in rows))
        votes.setdefault(key, []).append(vote)
    known = places(ledger, asked, view.where.splits)
    made.left["of a split that is not declared"] += len(asked.keys() - known.keys())
    inside = (vote for (episode, _), some in votes.items() if episode in known for vote in some)
    verdicts, left = pool(inside, view.pool)
    made.left.update(left)
    at, _ = _written(told)
    decided: list[tuple[str, str, list[Pooled]]] = []
    for episode in asked:
        if episode not in known:
            continue
        found = [verdicts.get(_SAID_APART.join((episode, criterion))) for criterion in sorted(asked[episode])]
        labels = {one.label for one in found if one is not None}
        if "bad" in labels:
            decided.append((episode, "bad", [one for one in found if one is not None and one.label == "bad"]))
        elif None not in found and labels == {"good"}:
            decided.append((episode, "good", [one for one in found if one is not None]))
        elif "between" in labels:
            made.left["neither good nor bad"] += 1
    for some in batches(decided):
        episodes, tasks = load(ledger, (episode for episode, _, _ in some))
        for episode_id, label, because in some:
            if episode_id not in episodes:
                made.left["the episode was erased"] += 1
                continue
            one_episode = episodes[episode_id]
            made.keep(_single, one_episode, tasks[one_episode.task_id], label, because, at)
    return made


def _single(episode: Episode, task: Task, label: str, because: Sequence[Pooled], at: dict[str, float]) -> Row:
    prompt, answer = answered(task, episode)
    confidence = min(one.confidence for one in because)
    data = {"prompt": plain(prompt), "completion": plain(answer), **tools_of(task), "label": label == "good"}
    ids = tuple(dict.fromkeys(one for verdict in because for one in verdict.feedback_ids))
    sources = sorted({one for verdict in because for one in verdict.sources})
    return row_of(
        {**data, "confidence": round(confidence, 6)}, task, [episode], ids, sources,
        min(one.support for one in because), confidence, max(at[one] for one in ids), label=label,
    )  # fmt: skip


def _bounds(view: UnpairedView, told: Iterable[Feedback]) -> tuple[float, float]:
    if view.good is not None and view.bad is not None:
        return view.good, view.bad
    for one in told:
        if one.kind == "score" and one.value is not None and not 0 <= one.value <= 1:
            raise DataError(
                f"a score of {one.criterion!r} is {one.value:g}, which is not between 0 and 1: say what is 'good' and "
                "what is 'bad' on its scale"
            )
    return 1.0, 0.0


def _label_of(one: Feedback, view: UnpairedView, good: float, bad: float) -> str | None:
    if one.kind == "score":
        return "good" if one.value >= good else "bad" if one.value <= bad else "between"
    return "good" if one.value in view.good_labels else "bad" if one.value in view.bad_labels else None


# --- what all share ------------------------------------------------------------------------


def row_of(
    data: dict[str, Any],
    task: Task,
    episodes: Sequence[Episode],
    feedback_ids: Sequence[str],
    sources: Sequence[str],
    support: float,
    confidence: float | None,
    at: float,
    *,
    label: str = "",
) -> Row:
    """A row about episodes of one task."""
    return Row(
        data=data,
        feedback_ids=tuple(feedback_ids),
        episode_ids=tuple(episode.id for episode in episodes),
        task_ids=(episodes[0].task_id,),
        kind=task.kind,
        label=label,
        sources=tuple(sources),
        support=support,
        confidence=confidence,
        at=at,
        licence=task.licence,
    )


def _written(told: Iterable[Feedback]) -> tuple[dict[str, float], dict[str, str]]:
    """When each statement was written, and by whom."""
    at, who = {}, {}
    for one in told:
        at[one.id] = one.created_at
        who[one.id] = source_key(one.source)
    return at, who


def why_unusable(one: Feedback) -> str:
    """Why a statement makes no row."""
    return "the source declined" if one.abstention is not None else f"{one.status}: no value"


def why_absent(episode_id: str, known: dict[str, Place]) -> str:
    """Why an episode cannot be read."""
    return "the episode was erased" if episode_id in known else "of a split that is not declared"
