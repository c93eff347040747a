"""A declaration to a dataset: rows, and a manifest in the ledger that names everything in them.

    views -> balance -> copies out -> test items out -> shares

Building again on the same ledger gives the same rows under the same id and writes nothing new. What was forgotten
since is not in the ledger any more, so the next build is another dataset without it; the old one is marked.

The manifest's `query` holds the whole declaration and, under `built`, what became of the rows: how many each view
made, what made no row and why, which rows were copies, and which held test items. It names ids and no texts.
Rows that went are not among the manifest's members: they taught nothing.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metier.base.clock import now
from metier.base.errors import DataError
from metier.base.files import write_whole
from metier.base.ids import content_hash, derive_id
from metier.feedback.data.declaration import (
    DatasetSettings,
    Dedup,
    DemonstrationView,
    PairView,
    StepView,
    TaskView,
    UnpairedView,
    View,
)
from metier.feedback.data.decontaminate import Contamination, held_out
from metier.feedback.data.dedup import Copy, Embed, Reps, without_copies
from metier.feedback.data.meaning import calibrate, embedder
from metier.feedback.data.mixture import balanced, mixed
from metier.feedback.data.rows import Row
from metier.feedback.data.selecting import as_it_stood
from metier.feedback.data.steps import step_rows
from metier.feedback.data.tasks import task_rows
from metier.feedback.data.views import Made, demonstrations, pairs, unpaired
from metier.records.ledger import Ledger
from metier.records.types import DatasetManifest
from metier.records.view import LedgerView

__all__ = ["Built", "build", "rows_of", "write_rows"]

Progress = Callable[[str], None]
_NAMED = 50  # copies that the manifest names one by one; all are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A dataset as it was built."""

    manifest: DatasetManifest
    rows: tuple[Row, ...]
    copies: tuple[Copy, ...]
    contaminated: tuple[Contamination, ...]

    @property
    def told(self) -> dict[str, Any]:
        """What became of the rows, as the manifest has it."""
        return dict(self.manifest.query["built"])


def build(
    ledger: Ledger,
    dataset: DatasetSettings,
    *,
    run_id: str | None = None,
    stage: str = "data",
    embed: Embed | None = None,
    on_step: Progress = lambda _: None,
) -> Built:
    """Build a dataset and add its manifest to the ledger, under this run or one of its own.

    `embed` stands in for the model that the declaration names. Raises `DataError` where no row is left.
    """
    parts: list[list[Row]] = []
    told: list[dict[str, Any]] = []
    for number, view in enumerate(dataset.views, 1):
        made = rows_of(ledger, view)
        part = made.rows
        for how in view.balance:
            part = balanced(part, how, dataset.seed)
        parts.append(part)
        left = {why: n for why, n in sorted(made.left.items()) if n}
        told.append({"kind": view.kind, "made": len(made.rows), "after_balance": len(part), "left": left})
        on_step(f"view {number}: {len(made.rows)} rows" + (f", {len(part)} after balance" if view.balance else ""))
    parts, copies, calibration = _without_copies(parts, dataset.dedup, embed)
    on_step(f"{len(copies)} copies left out")
    parts, contaminated, items = _without_tests(ledger, parts, dataset)
    on_step(
        f"{len(contaminated)} rows that hold test items left out, of {items} items"
        if dataset.decontaminate.enabled
        else "NOT looked for test items, as the declaration says"
    )
    shares = [view.share for view in dataset.views if view.share is not None]
    rows = mixed(parts, shares or None, dataset.rows, dataset.repeats, dataset.seed)
    if not rows:
        raise DataError(_why_empty(dataset.name, told))
    by_how = Counter(copy.how for copy in copies)
    built = {
        "rows": len(rows),
        "row_hash": content_hash([row.id for row in rows]),
        "views": told,
        "labels": dict(sorted(Counter(row.label for row in rows if row.label).items())),
        "copies": {"n": len(copies), **dict(sorted(by_how.items())), "named": [asdict(c) for c in copies[:_NAMED]]},
        "calibration": calibration,
        "decontaminated": dataset.decontaminate.enabled,
        "test_items": items,
        "contaminated": [one.to_json() for one in contaminated],
    }
    declared = dataset.model_dump(mode="json")
    manifest = _add(ledger, dataset, rows, {"declaration": declared, "built": built}, run_id, stage)
    return Built(manifest=manifest, rows=tuple(rows), copies=tuple(copies), contaminated=tuple(contaminated))


def rows_of(ledger: LedgerView, view: View) -> Made:
    """The rows of one view, before anything is taken out."""
    at = as_it_stood(ledger, view.where)
    if isinstance(view, DemonstrationView):
        return demonstrations(at, view)
    if isinstance(view, PairView):
        return pairs(at, view)
    if isinstance(view, UnpairedView):
        return unpaired(at, view)
    if isinstance(view, StepView):
        return step_rows(at, view)
    assert isinstance(view, TaskView)
    return task_rows(at, view)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as JSON lines, as `metier train --data` reads them; whole or not at all."""
    write_whole(path, "".join(json.dumps(row.data, ensure_ascii=False) + "\n" for row in rows))


def _without_copies(
    parts: Sequence[Sequence[Row]], how: Dedup, embed: Embed | None
) -> tuple[list[list[Row]], list[Copy], dict[str, Any] | None]:
    """Copies are looked for across views: a row in two of them stays in one."""
    semantic, calibration = None, None
    if how.semantic == "calibrated":
        means = embed or embedder(how.model)
        found = calibrate(means, how.model, how.false_share)
        if found.near_misses > how.near_misses:
            raise DataError(
                f"{how.model} takes {found.near_misses:.0%} of known near misses for the same, {found.recall:.0%} of "
                "paraphrases, so it would drop different requests: name another dedup.model, set dedup.semantic to "
                "off, or raise dedup.near_misses if you insist"
            )
        semantic, calibration = (means, found.threshold), asdict(found)
    everything = [row for part in parts for row in part]
    kept, copies = without_copies(everything, Reps(exact=how.exact, near=how.near, semantic=semantic))
    there = {id(row) for row in kept}
    return [[row for row in part if id(row) in there] for part in parts], copies, calibration


def _without_tests(
    ledger: Ledger, parts: Sequence[Sequence[Row]], dataset: DatasetSettings
) -> tuple[list[list[Row]], list[Contamination], int]:
    """Tests are those of today, whatever moment the views are of: what is tested on now must not be learned."""
    if not dataset.decontaminate.enabled:
        return [list(part) for part in parts], [], 0
    training = [split for view in dataset.views for split in view.where.splits]
    tests = held_out(ledger, dataset.decontaminate, training)
    clean: list[list[Row]] = []
    found: list[Contamination] = []
    for part in parts:
        told = [(row, tests.find(row)) for row in part]
        clean.append([row for row, one in told if one is None])
        found += [one for _, one in told if one is not None]
    return clean, found, len(tests)


def _why_empty(name: str, told: Sequence[Mapping[str, Any]]) -> str:
    made = sum(one["made"] for one in told)
    whys = [f"{n} × {why}" for one in told for why, n in one["left"].items()]
    what = f"its views make {made} rows, none of which is left" if made else "no statement makes a row"
    because = f" ({'; '.join(whys[:4])})" if whys else ""
    return f"dataset {name!r} would be empty: {what}{because}; look at 'where' and at what the ledger holds"


def _add(
    ledger: Ledger, dataset: DatasetSettings, rows: Sequence[Row], query: dict[str, Any], run_id: str | None, stage: str
) -> DatasetManifest:
    feedback_ids = _each(row.feedback_ids for row in rows)
    episode_ids = _each(row.episode_ids for row in rows)
    task_ids = _each(row.task_ids for row in rows)
    run = run_id or derive_id("run", "data", dataset.name)
    manifest = DatasetManifest(
        id=derive_id("data", run, dataset.name, content_hash([query, feedback_ids, episode_ids, task_ids])),
        kind=dataset.views[0].kind,
        name=dataset.name,
        run_id=run,
        stage=stage,
        query=query,
        feedback_ids=feedback_ids,
        episode_ids=episode_ids,
        task_ids=task_ids,
        created_at=now(),
    )
    if run_id is None:
        ledger.ensure_run(run, "data", {"name": dataset.name}, seed=dataset.seed)
    ledger.add_dataset(manifest)
    return ledger.dataset(manifest.id)


def _each(ids: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(itertools.chain.from_iterable(ids)))
