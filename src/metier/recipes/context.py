"""What every stage of a run shares: ledger, log, folder, models, tasks, and the clock.

A stage's elapsed time goes on where a killed process left it, so that the report's cost
is that of the whole run.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metier.base.clock import monotonic
from metier.base.errors import DataError
from metier.base.executor import Executor
from metier.base.ids import derive_id
from metier.base.seeds import derive_seed
from metier.evaluate.suites import refuse_trained
from metier.models.adapters import add_adapter, has_adapter
from metier.models.hub import device_of, load_model, load_tokenizer
from metier.models.renderer import Renderer, get_renderer
from metier.recipes.settings import BASE, Recipe
from metier.records.events import EventLog, read
from metier.records.ledger import Ledger
from metier.records.types import Task, Weights
from metier.rollout.policy import EnginePolicy, Policy
from metier.rollout.torch_engine import TorchEngine
from metier.rollout.vllm_engine import VllmEngine
from metier.tasks.protocol import TaskFamily
from metier.tasks.registry import get_family
from metier.train.checkpoints import export, save_model

__all__ = ["Context", "peak_memory_gb"]


def peak_memory_gb() -> float:
    """The most memory that this process has held, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@dataclass
class Context:
    """The surroundings of the stages of one run."""

    recipe: Recipe
    run_id: str
    folder: Path
    ledger: Ledger
    log: EventLog
    family: TaskFamily
    executor: Executor
    _tokenizer: PreTrainedTokenizerBase | None = None
    _renderer: Renderer | None = None
    _model: tuple[str, PreTrainedModel] | None = None
    _vllm: VllmEngine | None = None
    _speaking: threading.Lock = field(default_factory=threading.Lock)
    _clock: dict[str, float] = field(default_factory=dict)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.recipe.model.name)
        return self._tokenizer

    @property
    def renderer(self) -> Renderer:
        """Messages to tokens and back, for the model."""
        if self._renderer is None:
            self._renderer = get_renderer(self.tokenizer, self.recipe.model.renderer)
            if not self._renderer.keeps_past:
                self.log.emit(
                    "",
                    "note",
                    text="the model's chat template changes earlier turns when a conversation goes on; "
                    "episodes keep what was sampled",
                )
        return self._renderer

    def seed(self, *path: str | int) -> int:
        """A seed under the run's root seed."""
        return derive_seed(self.recipe.seed, *path)

    def tasks(self, split: str, n: int) -> list[Task]:
        """The first `n` tasks of a split; the same for every stage of the run.

        A split of another family is named with it: `general.chat`.
        """
        family, own = self.family_of(split)
        tasks = family.tasks(own, n, self.seed("tasks", split))
        if not tasks:
            raise DataError(f"split {own!r} of {family.name!r} is empty; splits are {', '.join(family.splits())}")
        return tasks

    def family_of(self, split: str) -> tuple[TaskFamily, str]:
        """The family that makes a split, and the split's name there."""
        name, dot, own = split.partition(".")
        return (get_family(name), own) if dot and split not in self.family.splits() else (self.family, split)

    def checkpoint_id(self, of: str) -> str:
        """The checkpoint that a stage made; the model's own name for `base`."""
        return self.recipe.model.name if of == BASE else derive_id("ckpt", self.run_id, of)

    def weights(self, of: str, step: int = 0) -> Weights:
        """How episodes name the weights that spoke."""
        return Weights(checkpoint=self.checkpoint_id(of), step=step)

    def place(self, of: str) -> str:
        """Where the model of `base` or of a training stage lies, or its name."""
        return self.recipe.model.name if of == BASE else str(self.folder / "checkpoints" / of)

    def load(self, of: str) -> PreTrainedModel:
        """The model of `base` or of a finished training stage. One model is held at a time."""
        if self._model is None or self._model[0] != of:
            self._model = None  # let go of the old one first
            where = self.place(of)
            adapter = self.recipe.model.adapter
            quantize = "none" if adapter is None else adapter.quantize
            dtype = getattr(torch, self.recipe.model.dtype)
            device = device_of(self.recipe.model.device)
            self._model = (of, load_model(where, dtype=dtype, device=device, quantize=quantize))
        return self._model[1]

    def take(self, of: str) -> PreTrainedModel:
        """The model of `of` for the caller to change; with a new adapter where the recipe wants one."""
        model, adapter = self.load(of), self.recipe.model.adapter
        self._model = None
        if adapter is not None and not has_adapter(model):
            add_adapter(model, adapter, seed=self.seed("adapter"))
        return model

    def hold(self, of: str, model: PreTrainedModel) -> None:
        """Hold a model whose weights are those of stage `of`, so that it need not be read back."""
        self._model = (of, model)

    def release(self) -> None:
        """Let go of the model that is held, before another way of training or scoring takes the memory."""
        self._model = None

    @contextmanager
    def policy(self, model: PreTrainedModel) -> Iterator[Policy]:
        """These weights, ready to speak in episodes, for as long as the caller needs them.

        The vllm engine is started once, takes on new weights, and speaks for one caller at a time.
        """
        settings = self.recipe.engine
        if settings.kind == "torch":
            yield EnginePolicy(TorchEngine(model), self.renderer)
            return
        with self._speaking:
            if self._vllm is None and settings.address is None:
                with tempfile.TemporaryDirectory(prefix="metier-") as folder:
                    self._save(model, start := Path(folder) / "start")
                    options = {"dtype": self.recipe.model.dtype, **settings.options}
                    self._vllm = VllmEngine(start, python=settings.python, settings=options)
            else:
                self._vllm = self._vllm or VllmEngine("", address=settings.address)
                self._vllm.load_weights(lambda where: self._save(model, where))
            yield EnginePolicy(self._vllm, self.renderer)

    def close(self) -> None:
        """Let go of an engine that lives outside of this process."""
        if self._vllm is not None:
            self._vllm.close()

    def _save(self, model: PreTrainedModel, where: Path) -> None:
        """The whole model in a folder; an adapter merged into its base."""
        if not has_adapter(model):
            save_model(model, self.tokenizer, where, template=self.renderer.template, manifest={})
            return
        parts = where.with_name(f"{where.name}-adapter")
        save_model(model, self.tokenizer, parts, template=self.renderer.template, manifest={})
        export(parts, where)

    # --- time and events ---------------------------------------------------------------

    def elapsed(self, stage: str) -> float:
        """Seconds that a stage has worked so far, those before a crash included."""
        return monotonic() - self._clock[stage]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Emit the start and the end of a stage around its work."""
        before = max((e.get("elapsed") or 0.0 for e in read(self.folder) if e["stage"] == name), default=0.0)
        self._clock[name] = monotonic() - before
        self.log.emit(name, "stage_start")
        yield
        self.log.emit(name, "stage_end", seconds=self.elapsed(name), peak_memory_gb=peak_memory_gb())

    def emit(self, stage: str, event: str, **fields: Any) -> None:
        """Log an event of a stage with the seconds that it has worked."""
        self.log.emit(stage, event, elapsed=self.elapsed(stage), **fields)

    # --- what a stage leaves behind ----------------------------------------------------

    def finished(self, stage: str) -> Mapping[str, Any] | None:
        """What a finished stage wrote, or None."""
        path = self.folder / "stages" / f"{stage}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def finish(self, stage: str, result: Mapping[str, Any]) -> None:
        """Mark a stage as done; from now on a resumed run skips it."""
        path = self.folder / "stages" / f"{stage}.json"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1))
        partial.rename(path)

    def refuse_overlap(self, tasks: Sequence[Task], what: str) -> None:
        """Training tasks must not stand in any suite of this project. Raises `DataError`."""
        suites = {task_id: suite.name for suite in self.ledger.suites() for task_id in suite.task_ids}
        caught = next((task for task in tasks if task.id in suites), None)
        if caught is not None:
            raise DataError(
                f"{what}: task {caught.id} is also in suite {suites[caught.id]!r}; suites never enter training"
            )

    def refuse_trained(self, of: str, tasks: Sequence[Task], what: str) -> None:
        """What a checkpoint learnt from says nothing about how good it is. Raises `DataError`."""
        if of != BASE:
            refuse_trained(self.ledger, self.checkpoint_id(of), tasks, what)
