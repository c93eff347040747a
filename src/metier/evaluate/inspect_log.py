"""An evaluation as a log of Inspect, for `inspect view` and for whatever reads such logs.

The log is the JSON form of inspect-ai's `EvalLog`, version 2, written without inspect-ai: a sample for each attempt
(its `epoch` is the attempt, counted from 1), with the whole conversation, what the verifiers said as scores, and its
tokens. The first score is `success`, then one for each verifier. A sample that broke has an `error` and no scores,
as Inspect has it: unscored is not zero. What was not run is not in the log; `results` counts it. Inspect lists a
JSON log only where its name begins with a time, so `log_name` says what to call it.

Left out: events (the transcript of Inspect's own run), logs of models' calls, and token ids, which the ledger has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metier.base.clock import iso
from metier.base.ids import content_hash
from metier.evaluate.evaluation import Evaluation
from metier.evaluate.samples import Sample
from metier.feedback.verify import SUCCESS
from metier.records.types import Episode, Feedback, Message, Task, to_plain
from metier.records.values import by_episode
from metier.records.view import LedgerView
from metier.stats.intervals import mean_interval

__all__ = ["inspect_log", "log_name"]

STOPS = {"stop": "stop", "length": "max_tokens", "tokens": "max_tokens", "context": "model_length"}


def inspect_log(ledger: LedgerView, done: Evaluation, *, model: str) -> dict[str, Any]:
    """The log as JSON-ready values."""
    suite, settings = done.pinned.suite, done.pinned.settings
    made = [row for row in done.samples if row.episode]
    episodes = {one.id: one for one in ledger.episodes(ids=[row.episode for row in made])}
    said = by_episode(ledger.feedback(run_id=done.id, about=list(episodes)))
    tasks = {task.id: task for task in done.pinned.tasks}
    at = sorted(one.created_at for one in episodes.values()) or [0.0]
    name = f"metier/{model}"
    sampling = settings.sampling
    return {
        "version": 2,
        "status": "success" if len(made) == len(done.samples) else "cancelled",
        "eval": {
            "eval_id": _short(done.id, "eval"),
            "run_id": _short(done.id, "run"),
            "created": iso(at[0]),
            "task": suite.name,
            "task_id": _short(f"{suite.name}@{suite.version}", "task"),
            "task_version": suite.version,
            "task_attribs": {},
            "task_args": {"hash": suite.hash},
            "dataset": {
                "name": suite.name,
                "samples": len(tasks),
                "sample_ids": list(tasks),
                "shuffled": False,
            },
            "model": name,
            "model_args": dict(done.key.get("model", {})),
            "config": {"epochs": settings.repeats},
            "packages": {},
            "metadata": {"metier": {"evaluation": done.id, **to_plain(done.key)}},
        },
        "plan": {
            "name": "plan",
            "steps": [],
            "config": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_turn_tokens,
            },
        },
        "results": {
            "total_samples": len(done.samples),
            "completed_samples": sum(row.status == "scored" for row in made),
            "scores": _results(made, said),
        },
        "stats": {
            "started_at": iso(min((one.created_at - one.cost.seconds for one in episodes.values()), default=0.0)),
            "completed_at": iso(at[-1]),
            "model_usage": {
                name: _usage(sum(row.prompt_tokens or 0 for row in made), sum(row.tokens or 0 for row in made)),
            },
        },
        "samples": [
            _sample(row, tasks[row.id], episodes[row.episode], said.get(row.episode, []), name) for row in made
        ],
    }


def log_name(log: Mapping[str, Any]) -> str:
    """The name of the log's file: time, task and id, as Inspect calls its own. The same for the same evaluation."""
    of = log["eval"]
    task = re.sub(r"[^A-Za-z0-9.]+", "-", of["task"]).strip("-")
    return f"{of['created'].replace(':', '-').replace('Z', '+00-00')}_{task}_{of['eval_id']}.json"


def _results(rows: Sequence[Sample], said: Mapping[str, Sequence[Feedback]]) -> list[dict[str, Any]]:
    values: dict[str, list[float | None]] = {SUCCESS: [row.score for row in rows]}
    clusters = [row.cluster for row in rows]
    for place, row in enumerate(rows):
        for scorer, feedback in _named(said.get(row.episode, [])).items():
            values.setdefault(scorer, [None] * len(rows))[place] = feedback.value
    return [_result(scorer, found, clusters) for scorer, found in values.items()]


def _result(scorer: str, values: Sequence[float | None], clusters: Sequence[str]) -> dict[str, Any]:
    found = mean_interval(values, clusters=clusters)
    metrics = {"mean": found.mean, "stderr": found.se}  # clustered
    return {
        "name": scorer,
        "scorer": scorer,
        "scored_samples": found.n,
        "unscored_samples": found.left_out,
        "params": {},
        "metrics": {
            name: {"name": name, "value": value, "params": {}} for name, value in metrics.items() if value is not None
        },
    }


def _sample(row: Sample, task: Task, episode: Episode, said: Sequence[Feedback], model: str) -> dict[str, Any]:
    messages = [_message(message, place, row, model) for place, message in enumerate(episode.messages)]
    asked, answer = messages[: len(task.messages)], messages[len(task.messages) :]
    last = next((one for one in reversed(answer) if one["role"] == "assistant"), None)
    usage = _usage(row.prompt_tokens or 0, row.tokens or 0)
    out: dict[str, Any] = {
        "id": row.id,
        "epoch": row.repeat + 1,
        "input": asked,
        "target": str(task.answer.get("answer", "")),
        "metadata": {"cluster": row.cluster, "kind": row.kind, "split": row.split, "episode": row.episode},
        "messages": messages,
        "output": {
            "model": model,
            "choices": [] if last is None else [{"message": last, "stop_reason": STOPS.get(row.stop, "unknown")}],
            "completion": "" if last is None else last["content"],
            "usage": usage,
        },
        "store": {},
        "events": [],
        "model_usage": {model: usage},
        "total_time": row.seconds,
        "attachments": {},
    }
    if row.status == "unscored":
        out["error"] = {"message": row.reason, "traceback": row.reason, "traceback_ansi": row.reason}
    else:
        out["scores"] = {
            SUCCESS: {"value": row.score, "explanation": row.reason},
            **{
                scorer: {
                    "value": feedback.value,
                    "explanation": feedback.reason,
                    "metadata": {**to_plain(feedback.evidence), "version": feedback.source.version},
                }
                for scorer, feedback in _named(said).items()
                if feedback.value is not None
            },
        }
    return out


def _named(said: Sequence[Feedback]) -> dict[str, Feedback]:
    """What was said, by the verifier's name; with a number where a task asks one twice."""
    out: dict[str, Feedback] = {}
    for feedback in said:
        name, more = feedback.source.name, 2
        while name in out or name == SUCCESS:
            name, more = f"{feedback.source.name}_{more}", more + 1
        out[name] = feedback
    return out


def _message(message: Message, place: int, row: Sample, model: str) -> dict[str, Any]:
    out: dict[str, Any] = {
        "id": _short(f"{row.episode}/{place}", "message"),
        "role": message.role,
        "content": message.content,
    }
    if message.role == "assistant":
        out["model"] = model
        if message.tool_calls:
            out["tool_calls"] = [
                {
                    "id": call.id,
                    "function": call.name,
                    "arguments": call.parsed() or {},
                    "type": "function",
                    **({"parse_error": f"not a JSON object: {call.arguments}"} if call.parsed() is None else {}),
                }
                for call in message.tool_calls
            ]
    if message.role == "tool":
        out["tool_call_id"] = message.tool_call_id
        out["function"] = message.name
    return out


def _usage(read: int, written: int) -> dict[str, int]:
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _short(*parts: str) -> str:
    """Inspect's ids are of 22 letters and digits."""
    return content_hash(list(parts), length=22)
