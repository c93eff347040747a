"""Sample logs of lm-eval (`samples_TASK_TIME.jsonl`, as `--log_samples` writes them), read without lm-eval.

A row is a document, what was asked of the model about it, what came back and the task's metrics. A text that was
written is an answer, and several are several attempts, which one metric is about together. Of choices that were
weighed, the answer is the likeliest, by the sum of log-probabilities as `acc` counts it; where only one was weighed
the model said nothing, so the episode only asks. A row for each of a task's filters is one attempt: a metric is
the criterion METRIC, or METRIC,FILTER where there is a filter. One that is missing, null or NaN is unscored.

The rows name neither model nor versions. These stand in `results_TIME.json` beside them, and are unknown without it.

Left out: metrics that are lists, such as those of single instructions, which only the task can add up.

https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/interface.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metier.base.errors import DataError
from metier.records.layouts.items import Answer, Item, Said, messages_of
from metier.records.traces.calls import Skipped, loaded, mapping, number, sampling_of
from metier.records.types import Message, Sampling, Source

__all__ = ["METRICS", "fits", "item", "log_of", "metrics_of"]

METRICS = ("exact_match", "acc", "acc_norm", "pass@1", "prompt_level_strict_acc", "f1")
LARGEST = 64 * 2**20  # bytes of a file of results
_NAME = re.compile(r"samples_(?P<task>.+?)(_(?P<time>\d{4}-\d\d-\d\dT[\d.:-]+))?\.jsonl(\.gz)?$")
_MODEL = re.compile(r"(?:^|,)(?:pretrained|model)=([^,]+)")


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    return "doc_id" in row and bool({"resps", "filtered_resps"} & row.keys())


def metrics_of(row: Mapping[str, Any]) -> list[str]:
    """The names of a row's metrics; of older logs, which do not name them, those that are known."""
    named = row.get("metrics")
    return [str(one) for one in named or ()] if isinstance(named, list) else [one for one in METRICS if one in row]


def log_of(path: Path) -> dict[str, str]:
    """Task, model and versions, from the file's name and from the results beside it; empty where they are unknown."""
    named = _NAME.fullmatch(path.name)
    if named is None:
        return {"task": "", "model": "", "version": ""}
    task, told = named["task"], path.with_name(f"results_{named['time']}.json")
    results: Mapping[str, Any] = {}
    if named["time"] and told.is_file() and told.stat().st_size <= LARGEST:
        try:
            results = mapping(json.loads(told.read_bytes()))
        except (ValueError, RecursionError):
            results = {}
    arguments = mapping(results.get("config")).get("model_args")
    found = _MODEL.search(arguments) if isinstance(arguments, str) else None
    one = mapping(arguments)
    model = results.get("model_name") or (found[1] if found else one.get("pretrained") or one.get("model"))
    of_task, own = mapping(results.get("versions")).get(task), results.get("lm_eval_version")
    version = ", ".join([*([f"lm-eval {own}"] if own else []), *([f"{task} {of_task}"] if of_task is not None else [])])
    return {"task": task, "model": str(model or ""), "version": version}


def item(place: str, row: Mapping[str, Any]) -> Item:
    """What one row holds. Raises `DataError`; see `guarded`."""
    if not fits(row):
        raise DataError("no sample of lm-eval: it needs `doc_id`, and `resps` or `filtered_resps`")
    log = mapping(row.get("log"))
    requests = _requests(row.get("arguments"))
    back = row.get("resps") or row["filtered_resps"]
    if not requests or not isinstance(back, list):
        raise DataError("it says not what was asked: `arguments` is missing")
    sampling = Sampling()
    if _written(requests):
        prompt = _prompt(requests[0][0])
        kwargs = mapping(requests[0][1]) if len(requests[0]) > 1 else {}
        greedy = {"temperature": 0.0} if kwargs.get("do_sample") is False else {}
        sampling = sampling_of({**kwargs, **greedy, "max_tokens": kwargs.get("max_gen_toks")})
        texts = [text for one in back for text in _texts(one)]
    else:
        shared = _shared([one[0] for one in requests])
        prompt = _prompt(shared)
        texts = _likeliest(requests, back, len(shared))
    answers = tuple(
        Answer(messages=_said(text), model=str(log.get("model", "")), index=index, sampling=sampling)
        for index, text in enumerate(texts or [""])
    )
    said: list[Said] = []
    skipped: list[Skipped] = []
    for name in metrics_of(row):
        made = _statement(name, row, log, tuple(range(len(answers))))
        if made is None:
            skipped.append(Skipped(f"{place}, {name}", "a metric that is neither a number nor missing"))
        else:
            said.append(made)
    target, task = row.get("target"), str(log.get("task", ""))
    return Item(
        place=place,
        prompt=prompt,
        answers=answers,
        said=tuple(said),
        skipped=tuple(skipped),
        meta={
            "item": f"{task}/{row['doc_id']}/{row.get('doc_hash', '')}",
            "task": task,
            "sample": str(row["doc_id"]),
            "doc": mapping(row.get("doc")),
        },
        kind=task,
        reference={} if target is None else {"answer": target},
    )


def _requests(raw: Any) -> list[list[Any]]:
    """The arguments of each request; older logs have lists of them, newer ones `gen_args_0` with `arg_0`."""
    if isinstance(raw, Mapping):
        found = sorted(raw.items(), key=lambda one: int(one[0].rpartition("_")[2]))
        given = [one for _, one in found]
    else:
        given = list(raw or ())
    made = []
    for one in given:
        if isinstance(one, Mapping):
            one = [value for _, value in sorted(one.items())]
        one = [one] if isinstance(one, str) else list(one)
        if one and isinstance(one[0], list) and len(one[0]) == 1:  # as clients of chat models are given conversations
            one[0] = one[0][0]
        if one and not isinstance(one[0], str):
            raise DataError(f"what was asked must be a text, not {type(one[0]).__name__}")
        made.append(one)
    return [one for one in made if one]


def _written(requests: Sequence[Sequence[Any]]) -> bool:
    """Whether texts were asked for: beside the prompt stand settings, where else stands a text to weigh."""
    return len(requests[0]) > 1 and isinstance(loaded(requests[0][1]), Mapping)


def _shared(contexts: Sequence[str]) -> str:
    """What all requests begin with, in whole words: choices may stand within a sentence."""
    first = contexts[0]
    if all(one == first for one in contexts):
        return first
    if isinstance(loaded(first), list):
        raise DataError("its choices stand in different conversations")
    until = next((n for n, letters in enumerate(zip(*contexts, strict=False)) if len(set(letters)) > 1), None)
    until = min(map(len, contexts)) if until is None else until
    return first[: first.rfind(" ", 0, until) + 1]


def _prompt(raw: str) -> tuple[Message, ...]:
    """What was asked: a text, or a conversation as JSON text."""
    found = loaded(raw)
    if isinstance(found, list) and found and all(isinstance(one, Mapping) and "role" in one for one in found):
        return messages_of(found, "user", "what was asked")
    return messages_of(raw, "user", "what was asked")


def _texts(raw: Any) -> Iterator[str]:
    if isinstance(raw, list):
        for one in raw:
            yield from _texts(one)
    else:
        yield str(raw)


def _said(text: str) -> tuple[Message, ...]:
    return messages_of(text, "assistant", "the answer") if text.strip() else ()


def _likeliest(requests: Sequence[Sequence[Any]], back: Sequence[Any], shared: int) -> list[str]:
    """What follows on the first `shared` characters with the highest log-probability; none without a choice."""
    if len(requests) < 2 or len(back) != len(requests):
        return []
    weighed = []
    for one in back:
        while isinstance(one, list) and one and isinstance(one[0], list):
            one = one[0]
        weighed.append(number(one[0] if isinstance(one, list) and one else one))
    sure = [one for one in weighed if one is not None]
    if len(sure) < len(weighed):
        raise DataError("a choice has no log-probability")
    first = requests[sure.index(max(sure))]
    return [str(first[0])[shared:] + "".join(str(part) for part in first[1:2])]


def _statement(name: str, row: Mapping[str, Any], log: Mapping[str, Any], about: tuple[int, ...]) -> Said | None:
    """What a metric says; None where it is no number. Text that is none is no metric either."""
    way, value = str(row.get("filter") or "none"), row.get(name)
    criterion = name if way == "none" else f"{name},{way}"
    source = Source(kind="verifier", name=criterion, version=str(log.get("version") or "unknown"))
    common: dict[str, Any] = {"about": about, "criterion": criterion, "kind": "score", "source": source}
    common["evidence"] = {"filtered": row.get("filtered_resps")}
    if value is None:
        return Said(value=None, unscored="the row has no such metric" if name not in row else "it is null", **common)
    found = number(value)
    if found is not None:
        return Said(value=found, **common)
    if isinstance(value, float):
        return Said(value=None, unscored=f"it is {value}", **common)
    return None
