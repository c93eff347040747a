"""A dataset's card: what is in it, where it comes from, what was taken out, and what came of it.

Everything is read from the ledger by the dataset's manifest, so a card can be made of any dataset, those of
recipes too; what became of rows on the way is there for datasets that were built from a declaration. A card
quotes no conversation: it can be handed on where the data cannot. Names of sources and tasks do stand in it.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from metier.base.clock import iso
from metier.feedback.data import pictures
from metier.feedback.data.pooling import source_key
from metier.feedback.data.rows import words
from metier.feedback.data.selecting import batches, usable
from metier.records.transcript import stylesheet
from metier.records.types import DatasetManifest, Feedback
from metier.records.view import LedgerView
from metier.stats.agreement import krippendorff
from metier.stats.votes import Votes

__all__ = ["Agreement", "Card", "as_html", "as_markdown", "card_of"]

Counts = tuple[tuple[str, int], ...]
_LABELS = 12  # different labels beyond which values are free text


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the sources say the same of the same thing, on one criterion."""

    criterion: str
    things: int  # that at least two sources judged
    alike: float  # share of pairs of sources that say the same
    alpha: float | None  # Krippendorff's, nominal
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """All that a card shows."""

    manifest: DatasetManifest
    rows: int | None  # None for a dataset that was not built from a declaration
    erased: int  # members that say nothing any more
    sources: Counts  # statements
    kinds_of_feedback: Counts
    values: Counts  # what was said, as classes
    criteria: Counts
    agreement: tuple[Agreement, ...]
    kinds: Counts  # of tasks
    families: Counts
    splits: Counts
    licences: Counts
    policies: Counts  # who wrote the episodes
    lengths: tuple[int, ...]  # words of the answers
    times: tuple[float, ...]  # of the statements
    cost_usd: float
    checkpoints: tuple[str, ...]  # trained on it

    @property
    def built(self) -> Mapping[str, Any]:
        """What became of the rows; empty where nobody wrote it down."""
        found = self.manifest.query.get("built", {})
        return found if isinstance(found, Mapping) else {}

    @property
    def sieve(self) -> list[tuple[str, int]]:
        """How many rows were left after each step."""
        if not self.built:
            return []
        made = sum(view["made"] for view in self.built["views"])
        after = sum(view["after_balance"] for view in self.built["views"])
        copies, tests = self.built["copies"]["n"], len(self.built["contaminated"])
        found = [("made of feedback", made)]
        if after != made:
            found.append(("after balance", after))
        found.append(("without copies", after - copies))
        if self.built["decontaminated"]:
            found.append(("without test items", after - copies - tests))
        return [*found, ("in the dataset", self.built["rows"])]

    @property
    def left(self) -> list[tuple[str, int]]:
        """What made no row, and why."""
        total: Counter[str] = Counter()
        for view in self.built.get("views", ()):
            total.update(view["left"])
        return total.most_common()


def card_of(ledger: LedgerView, dataset_id: str) -> Card:
    """Read a dataset's card. Raises `LedgerError` for one that the ledger does not know."""
    manifest = ledger.dataset(dataset_id)
    told: list[Feedback] = []
    for some in batches(manifest.feedback_ids):
        told += ledger.feedback(ids=some, current=False, erased=False)
    policies: Counter[str] = Counter()
    lengths: list[int] = []
    there = 0
    for some in batches(manifest.episode_ids):
        for episode in ledger.episodes(ids=some):
            policies[episode.weights.checkpoint] += 1
            if episode.messages:
                there += 1
                said = [message.content for message in episode.messages if message.role == "assistant"]
                lengths.append(sum(len(words(text)) for text in said))
    kinds, families, splits, licences = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    tasks = 0
    for some in batches(manifest.task_ids):
        for task in ledger.tasks(some).values():
            tasks += bool(task.messages)
            kinds[task.kind] += 1
            families[task.family] += 1
            splits[task.split] += 1
            licences[task.licence or "not stated"] += 1
    members = len(manifest.feedback_ids) + len(manifest.episode_ids) + len(manifest.task_ids)
    built = manifest.query.get("built")
    values = Counter(_class_of(one) for one in told if usable(one) and _class_of(one))
    return Card(
        manifest=manifest,
        rows=built["rows"] if isinstance(built, Mapping) else None,
        erased=members - len(told) - there - tasks,
        sources=_counts(Counter(f"{one.source.kind} {source_key(one.source)}" for one in told)),
        kinds_of_feedback=_counts(Counter(one.kind for one in told)),
        values=_counts(values) if len(values) <= _LABELS else (),
        criteria=_counts(Counter(one.criterion for one in told)),
        agreement=_agreement(told),
        kinds=_counts(kinds),
        families=_counts(families),
        splits=_counts(splits),
        licences=_counts(licences),
        policies=_counts(policies),
        lengths=tuple(lengths),
        times=tuple(one.created_at for one in told if one.created_at > 0),
        cost_usd=sum(one.cost.usd for one in told),
        checkpoints=tuple(one.id for one in ledger.checkpoints() if manifest.id in one.dataset_ids),
    )


def as_html(card: Card) -> str:
    """The card as one page that needs nothing else."""
    style = stylesheet() + _text("card.css")
    return _template().render(card=card, style=Markup(style), declaration=_declaration(card), facts=_facts(card))


def as_markdown(card: Card) -> str:
    """The card as text, for a repository or a model hub."""
    lines = [f"# {_cell(card.manifest.name)}", ""]
    if card.manifest.stale:
        lines += [f"**Stale:** {_cell(card.manifest.stale)}", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in _facts(card)), ""]
    for title, counts in _tables(card):
        if counts:
            lines += [f"## {title}", "", "| | n |", "|---|---|"]
            lines += [f"| {_cell(name)} | {n:,} |" for name, n in counts] + [""]
    if card.agreement:
        lines += ["## Agreement of sources", "", "| criterion | things judged twice | say the same | alpha |"]
        lines.append("|---|---|---|---|")
        lines += [
            f"| {_cell(one.criterion)} | {one.things:,} | {one.alike:.0%} | {_alpha(one)} |" for one in card.agreement
        ]
        lines.append("")
    if card.built:
        lines += ["## Test items", ""]
        if not card.built["decontaminated"]:
            lines += ["**The rows were not looked through for test items**, as the declaration says.", ""]
        elif not card.built["contaminated"]:
            lines += [f"None of {card.built['test_items']:,} was found in the rows.", ""]
        else:
            lines += ["Left out:", "", "| suite | item | row | found by |", "|---|---|---|---|"]
            lines += [
                f"| {_cell(one['suite'])} | {one['item']} | {one['row']} | {one['how']}, {one['part']} |"
                for one in card.built["contaminated"]
            ]
            lines.append("")
    lines += ["## Declaration", "", "```json", _declaration(card), "```", ""]
    return "\n".join(lines)


def _facts(card: Card) -> list[tuple[str, str]]:
    manifest = card.manifest
    facts = [("id", manifest.id), ("kind", manifest.kind), ("made", iso(manifest.created_at)[:10])]
    if card.rows is not None:
        facts.append(("rows", f"{card.rows:,}"))
    facts += [
        ("statements of feedback", f"{len(manifest.feedback_ids):,}"),
        ("episodes", f"{len(manifest.episode_ids):,}"),
        ("tasks", f"{len(manifest.task_ids):,}"),
        ("cost of the feedback", f"{card.cost_usd:,.2f} USD"),
        ("trained on it", ", ".join(card.checkpoints) or "nothing yet"),
    ]
    if card.erased:
        facts.append(("erased since", f"{card.erased:,} members"))
    calibration = card.built.get("calibration")
    if calibration:
        facts.append(
            (
                "same meaning",
                f"cosine of {calibration['model']} from {calibration['threshold']:.3f}: finds "
                f"{calibration['recall']:.0%} of {calibration['n']} paraphrases, and takes "
                f"{calibration['near_misses']:.0%} of near misses for the same",
            )
        )
    return facts


def _tables(card: Card) -> list[tuple[str, Sequence[tuple[str, int]]]]:
    return [
        ("Rows, step by step", card.sieve),
        ("What made no row", card.left),
        ("Who said it", card.sources),
        ("What was said", card.values),
        ("Criteria", card.criteria),
        ("Kinds of task", card.kinds),
        ("Splits", card.splits),
        ("Licences of the tasks", card.licences),
        ("Who wrote the episodes", card.policies),
    ]


def _class_of(one: Feedback) -> str:
    """What a statement says, as a class; empty for what is no class."""
    if one.kind == "preference":
        return "tie" if one.value == 0.5 else f"answer {int(one.value) + 1} as shown"
    if one.kind == "score":
        return f"{float(one.value):g}"
    return str(one.value) if one.kind == "label" else ""


def _agreement(told: Sequence[Feedback]) -> tuple[Agreement, ...]:
    by_criterion: dict[str, list[tuple[str, str, str]]] = {}
    for one in told:
        if not usable(one) or one.kind not in ("preference", "label", "score"):
            continue
        if one.kind == "preference":
            best = "" if one.value == 0.5 else one.about[int(one.value)]
            said = "tie" if not best else "first" if best == min(one.about) else "second"
        else:
            said = _class_of(one)
        about = "|".join(sorted(one.about)) + (f"|{one.span.turn}:{one.span.start}" if one.span else "")
        by_criterion.setdefault(one.criterion, []).append((about, source_key(one.source), said))
    found = []
    for criterion, rows in sorted(by_criterion.items()):
        last = {(about, who): said for about, who, said in rows}
        of_thing: dict[str, list[str]] = {}
        for (about, _), said in last.items():
            of_thing.setdefault(about, []).append(said)
        shared = [votes for votes in of_thing.values() if len(votes) > 1]
        if not shared:
            continue
        pairs = sum(len(votes) * (len(votes) - 1) // 2 for votes in shared)
        same = sum(n * (n - 1) // 2 for votes in shared for n in Counter(votes).values())
        alpha = low = high = None
        if len({said for _, _, said in rows}) <= _LABELS:
            measured = krippendorff(Votes.of(rows), draws=400)
            alpha, low, high = measured.value, measured.low, measured.high
        found.append(
            Agreement(criterion=criterion, things=len(shared), alike=same / pairs, alpha=alpha, low=low, high=high)
        )
    return tuple(found)


def _counts(counter: Counter[str]) -> Counts:
    return tuple(sorted(counter.items(), key=lambda one: (-one[1], one[0])))


def _alpha(one: Agreement) -> str:
    if one.alpha is None:
        return "none"
    return f"{one.alpha:.2f}" + ("" if one.low is None else f" ({one.low:.2f} to {one.high:.2f})")


def _declaration(card: Card) -> str:
    declared = card.manifest.query.get("declaration", card.manifest.query)
    return json.dumps(declared, indent=1, ensure_ascii=False)


def _cell(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").split())


@functools.cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(
        bars=pictures.bars, histogram=pictures.histogram, steps_of_time=pictures.steps_of_time, alpha=_alpha
    )
    return environment.from_string(_text("card.html.jinja"))


def _text(name: str) -> str:
    return files("metier.feedback.data").joinpath(name).read_text(encoding="utf-8")
