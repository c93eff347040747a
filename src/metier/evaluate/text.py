"""The loss of held-out text: what a model has forgotten of ordinary writing.

Each passage is read once, without a chat template, and its loss is the mean of -ln p over
its tokens but the first, in nats per token; lower is better. It is kept as feedback on an
episode that holds the passage, so that two models are compared passage by passage.

Left out: passages longer than the model's context; they are an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metier.base.clock import now
from metier.base.errors import DataError
from metier.base.ids import derive_id
from metier.records.ledger import Ledger
from metier.records.types import Episode, Feedback, Message, Source, Task, Weights
from metier.records.values import lowest_by_episode
from metier.train.packing import Example
from metier.train.score import score

__all__ = ["BUILT_IN", "passages", "text_loss"]

BUILT_IN = "general"
CRITERION = "text_loss"
VERSION = "1"


def passages(name: str) -> list[Task]:
    """The built-in passages (`general`, two dozen of our own), or those of a JSONL file of {"text": ...}.

    Raises `DataError` where the file is missing, holds another shape, or is empty.
    """
    if name == BUILT_IN:
        texts = files("metier.tasks").joinpath("passages.txt").read_text(encoding="utf-8").strip().split("\n\n")
    else:
        texts = _of_file(Path(name))
    return [
        Task(
            family="text",
            kind="text",
            split=f"text.{Path(name).stem}",
            source=f"general/{VERSION}" if name == BUILT_IN else Path(name).name,
            messages=(Message(role="assistant", content=text),),
        )
        for text in dict.fromkeys(texts)
    ]


def _of_file(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"held-out text {str(path)!r} cannot be read: {error.strerror}") from error
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON; each line must be like {{'text': '...'}}") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
            raise DataError(f"{path}, line {number}: needs a 'text' that is not empty")
        texts.append(row["text"])
    if not texts:
        raise DataError(f"held-out text {str(path)!r} is empty")
    return texts


def text_loss(
    ledger: Ledger,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    weights: Weights,
    run_id: str,
    stage: str,
    token_budget: int = 1600,
) -> list[float]:
    """Nats per token of every passage, kept in the ledger as feedback of this run and stage.

    What is kept there already is read, not computed again.

    Raises `DataError` where a passage has fewer than two tokens or more than the model reads.
    """
    ids = [derive_id("ep", run_id, stage, task.id) for task in tasks]
    known = lowest_by_episode(ledger.feedback(run_id=run_id, about=ids))
    kept = [value for episode in ids if (value := known.get(episode)) is not None]
    if len(kept) == len(tasks):
        return kept
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    examples = []
    for task in tasks:
        read = tuple(tokenizer(task.messages[0].content, add_special_tokens=False)["input_ids"])
        if len(read) < 2 or (limit is not None and len(read) > limit):
            raise DataError(f"a passage of held-out text has {len(read)} tokens; it needs from 2 to {limit or 'any'}")
        examples.append(Example(read, (0,) + (1,) * (len(read) - 1), key=task.id))
    told = score(model, examples, token_budget=token_budget)
    losses = [-sum(logprobs) / len(logprobs) for logprobs in told]
    episodes, feedback = [], []
    for name, task, example, logprobs, loss in zip(ids, tasks, examples, told, losses, strict=True):
        episode = Episode(
            id=name,
            task_id=task.id,
            run_id=run_id,
            stage=stage,
            weights=weights,
            messages=task.messages,
            token_ids=example.token_ids,
            sampler_logprobs=(0.0, *logprobs),
            loss_mask=example.loss_mask,
            split=task.split,
            created_at=now(),
        )
        episodes.append(episode)
        feedback.append(
            Feedback(
                id=derive_id("fb", episode.id, CRITERION),
                about=(episode.id,),
                criterion=CRITERION,
                kind="score",
                value=loss,
                source=Source(kind="execution", name=CRITERION, version=VERSION),
                created_at=now(),
                run_id=run_id,
            )
        )
    ledger.add_episodes(episodes)
    ledger.add_feedback(feedback)
    return losses
