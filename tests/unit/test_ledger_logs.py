"""Logs of Inspect and lm-eval into the ledger: what is asked, said and scored, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from typer.testing import CliRunner

from metier.base.errors import DataError
from metier.cli.app import app
from metier.cli.scores import read_scores
from metier.records.check import check
from metier.records.layouts import inspect_ai
from metier.records.layouts.front import import_files
from metier.records.ledger import Ledger
from metier.records.traces import files
from metier.records.traces.importing import Imported
from metier.records.types import Episode, Feedback, Source
from own_log import own_log

ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
LONG = "What is 1 plus 1? Take your time."


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def take(ledger: Ledger, path: Path, **options: Any) -> Imported:
    done = import_files(ledger, [path], **options)
    counts = ledger.counts()
    again = import_files(ledger, [path], **options)
    assert ledger.counts() == counts, "a second import changes nothing"
    assert (again.episodes, again.feedback) == (0, 0)
    assert [s.place for s in again.skipped] == [s.place for s in done.skipped]
    assert check(ledger) == []
    return done


def said(ledger: Ledger, episode: Episode) -> dict[str, Feedback]:
    return {one.criterion: one for one in ledger.feedback(about=[episode.id])}


def samples() -> list[dict[str, Any]]:
    """A sample with a tool, twice, and one that broke, in the form of inspect-ai 0.3.285."""
    call = {"id": "c1", "function": "add", "arguments": {"x": 1}, "type": "function"}
    reasoned = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "It is 2."}]
    spoken = [
        {"role": "system", "content": "You add."},
        {"role": "user", "content": "attachment://a1", "source": "input"},
        {"role": "assistant", "content": "", "source": "generate", "tool_calls": [call]},
        {"role": "tool", "content": "", "tool_call_id": "c1", "function": "add", "error": {"message": "no such tool"}},
        {"role": "assistant", "content": reasoned, "source": "generate"},
    ]
    scores = {
        "match": {"value": "C", "answer": "2", "explanation": "It is there."},
        "parts": {"value": {"a": 0.25, "b": float("nan")}},
        "tone": {"value": "friendly"},
    }
    whole = {
        "id": 1,
        "input": "attachment://a1",
        "target": "2",
        "messages": spoken,
        "output": {"model": "m-1", "choices": [{"message": spoken[-1], "stop_reason": "max_tokens"}]},
        "scores": scores,
        "metadata": {"cluster": "sums"},
        "model_usage": {"maker/m": {"input_tokens": 30, "output_tokens": 7}, "judge/j": {"output_tokens": 99}},
        "events": [{"event": "model", "tools": [ADD]}],
        "started_at": "2026-01-01T00:00:00+00:00",
        "completed_at": "2026-01-01T00:00:02+00:00",
        "total_time": 2.0,
        "attachments": {"a1": LONG},
    }
    second = {**whole, "epoch": 2, "uuid": "u2", "scores": {**scores, "match": {"value": "I"}}}
    broken = {"id": "x", "epoch": 1, "uuid": "u3", "input": "Why?", "target": "", "messages": [], "scores": {}}
    return [{**whole, "epoch": 1, "uuid": "u1"}, second, {**broken, "error": {"message": "ValueError('no')"}}]


def log_of(found: list[Any]) -> dict[str, Any]:
    about = {
        "eval_id": "e1", "task": "sums", "model": "maker/m", "created": "2026-01-01T00:00:00+00:00",
        "packages": {"inspect_ai": "0.3.285"},
        "scorers": [{"name": "inspect_ai/match", "options": {"location": "any"}}, {"name": "parts", "options": {}}],
    }  # fmt: skip
    plan = {"config": {"temperature": 0.5, "max_tokens": 16}}
    return {"version": 2, "status": "success", "eval": about, "plan": plan, "samples": found}


def packed(path: Path, found: list[Any], *, zstandard: bool = False, head: str = "_journal/start.json") -> Path:
    """An `.eval` file; `head` as a run that was ended in the middle leaves it."""
    members = {head: {**log_of([]), "samples": None}}
    members |= {f"samples/{n}_epoch_1.json": one for n, one in enumerate(found)}
    with zipfile.ZipFile(path, "w") as log:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            if not zstandard:
                log.writestr(name, data, zipfile.ZIP_DEFLATED)
                continue
            log.writestr(name, pyarrow.Codec("zstd").compress(data, asbytes=True), zipfile.ZIP_STORED)
            info = log.getinfo(name)
            info.compress_type, info.file_size = inspect_ai.ZSTANDARD, len(data)
    return path


def as_json(path: Path, found: list[Any], *, indent: int | None = None) -> Path:
    path.write_text(json.dumps(log_of(found), indent=indent))
    return path


# --- Inspect -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["eval", "zstandard", "json", "indented"])
def test_a_log_of_inspect(ledger: Ledger, tmp_path: Path, form: str) -> None:
    path = tmp_path / "log.file"
    if form in ("eval", "zstandard"):
        packed(path, samples(), zstandard=form == "zstandard")
    else:
        as_json(path, samples(), indent=2 if form == "indented" else None)
    done = take(ledger, path)
    assert (done.format, done.episodes, done.skipped) == ("inspect", 3, [])
    first, second, broken = sorted(ledger.episodes(), key=lambda one: str(one.meta["item"]))
    assert [m.role for m in first.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [m.content for m in first.messages] == ["You add.", LONG, "", "no such tool", "It is 2."]
    assert first.messages[2].tool_calls[0].parsed() == {"x": 1}
    assert (first.messages[3].name, first.messages[3].tool_call_id) == ("add", "c1")
    assert (first.weights.checkpoint, first.index, first.stop_reason) == ("maker/m", 0, "length")
    assert (first.sampling.temperature, first.sampling.max_turn_tokens) == (0.5, 16)
    assert (first.cost.prompt_tokens, first.cost.completion_tokens, first.cost.tool_calls) == (30, 7, 1)
    assert (first.created_at, first.split) == (1767225600.0, "evaluation")
    task = ledger.task(first.task_id)
    assert ([m.role for m in task.messages], task.answer, task.kind) == (["system", "user"], {"answer": "2"}, "sums")
    assert ([tool.name for tool in task.tools], task.cluster, task.split) == (["add"], "sums", "evaluation")
    assert (second.task_id, second.index) == (first.task_id, 1)

    match = said(ledger, first)["match"]
    assert (match.value, match.reason, match.evidence["answer"]) == (1.0, "It is there.", "2")
    assert match.source.version.startswith("0.3.285 ") and len(match.source.version) == 16  # with its options
    assert said(ledger, second)["match"].value == 0.0
    assert said(ledger, first)["parts/a"].source == Source(kind="verifier", name="parts", version="0.3.285")
    assert (said(ledger, first)["tone"].kind, said(ledger, first)["tone"].value) == ("label", "friendly")
    nan = said(ledger, first)["parts/b"]
    assert (nan.value, nan.status, nan.reason) == (None, "unscored", "the scorer said nan")

    assert (broken.error, broken.stop_reason, broken.weights.checkpoint) == ("ValueError('no')", "error", "maker/m")
    assert [m.content for m in broken.messages] == ["Why?"]
    missing = said(ledger, broken)
    assert {"match", "parts"} <= missing.keys()
    assert all((f.value, f.status, f.reason) == (None, "unscored", broken.error) for f in missing.values())


def test_values_are_those_of_inspect() -> None:
    given = ["C", "P", "I", "N", "Yes", "TRUE", "no", "False", True, 3, "0.25"]
    assert [inspect_ai.grade(one) for one in given] == [1, 0.5, 0, 0, 1, 1, 0, 0, 1, 3, 0.25]
    for word in ("c", "A", "", [1]):
        with pytest.raises(DataError, match="is no number"):
            inspect_ai.grade(word)


def test_what_input_shows_is_no_answer(ledger: Ledger, tmp_path: Path) -> None:
    example = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "2?"},
    ]
    spoken = [{"role": "system", "content": "s"}, *example, {"role": "assistant", "content": "two"}]
    choice = {"message": {"role": "assistant", "content": "three"}, "stop_reason": "stop"}
    found = [
        {"id": "shown", "epoch": 1, "input": example, "messages": spoken},
        {"id": "output only", "epoch": 1, "input": "3?", "messages": [], "output": {"choices": [choice]}},
    ]
    take(ledger, as_json(tmp_path / "log.json", found))
    tasks = {len(e.messages): ledger.task(e.task_id) for e in ledger.episodes()}
    assert {n: len(task.messages) for n, task in tasks.items()} == {5: 4, 2: 1}
    unscored = [(f.criterion, f.value, f.reason) for f in ledger.feedback()]  # by both scorers, each sample
    assert sorted(unscored) == [
        (name, None, "the log has no score of it") for name in ("match", "match", "parts", "parts")
    ]


def test_scored_anew(ledger: Ledger, tmp_path: Path) -> None:
    one = samples()[0]
    take(ledger, as_json(tmp_path / "a.json", [one]))
    one["scores"]["match"] = {"value": "I"}
    done = take(ledger, as_json(tmp_path / "b.json", [one]))
    assert (done.episodes, done.episodes_known, done.feedback) == (0, 1, 1)
    (episode,) = ledger.episodes()
    assert said(ledger, episode)["match"].value == 0.0
    old = [f for f in ledger.feedback(current=False) if f.criterion == "match"]
    assert [f.value for f in old] == [1.0, 0.0]
    import_files(ledger, [tmp_path / "a.json"])  # the older log again changes nothing
    assert said(ledger, episode)["match"].value == 0.0


def test_bad_samples_are_named_and_good_ones_kept(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, picture = samples()[0], {"role": "user", "content": [{"type": "image", "image": "data:"}]}
    bad = [
        {"epoch": 1, "input": "?"},
        7,
        {**good, "id": "pic", "messages": [picture]},
        {**good, "id": "odd", "uuid": "odd", "scores": 3},
    ]
    done = take(ledger, as_json(tmp_path / "log.json", [*bad, good]))
    whys = {s.place: s.why for s in done.skipped}
    assert whys.pop("log.json:1, sample 1") == "a sample without an id"
    assert whys.pop("log.json:1, sample 2") == "a sample must be an object, not int"
    assert "type 'image'; only text" in whys.pop("log.json:1, sample pic, epoch 1")
    assert not whys and {e.meta["sample"] for e in ledger.episodes()} == {"1", "odd"}
    monkeypatch.setattr(inspect_ai, "LARGEST", 5_000)
    found = [b"{no json", {**good, "metadata": {"much": "x" * 10_000}}, b"[" * 4_000, {**good, "uuid": "other"}]
    done = take(ledger, packed(tmp_path / "log.eval", found))
    assert done.episodes == 1
    assert [s.place for s in done.skipped] == [f"log.eval, samples/{n}_epoch_1.json" for n in range(3)]
    assert "unpacked, and 5,000 are read at most" in done.skipped[1].why
    scores = read_scores(str(tmp_path / "log.eval"))
    assert (scores.by_item, len(scores.skipped)) == ({"1": [1.0]}, 3)


def test_hostile_files_are_refused_in_a_sentence(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packed(tmp_path / "a.eval", samples()).read_bytes()
    cut = tmp_path / "cut.eval"
    cut.write_bytes(whole[: len(whole) // 2])
    other = tmp_path / "other.eval"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("readme.txt", "hello")
    empty = packed(tmp_path / "empty.eval", [])
    overlapping = tmp_path / "overlapping.eval"
    with zipfile.ZipFile(overlapping, "w") as file:
        file.writestr("header.json", json.dumps(log_of([])) + " " * 500)
        info = file.getinfo("header.json")
        for n in range(9):
            twin = zipfile.ZipInfo(f"samples/{n}_epoch_1.json")
            for name in ("compress_size", "file_size", "CRC", "header_offset"):
                setattr(twin, name, getattr(info, name))
            file.filelist.append(twin)
    for path, why in (
        (cut, "cut off or damaged"),
        (other, "neither header.json nor _journal/start.json"),
        (empty, "holds no samples"),
        (overlapping, "lie upon each other"),
        (as_json(tmp_path / "none.json", []), "without samples"),
    ):
        with pytest.raises(DataError, match=why) as error:
            import_files(ledger, [path])
        assert "\n" not in str(error.value) and path.name in str(error.value)
    with pytest.raises(DataError, match="cut off or damaged"):
        read_scores(str(cut))
    assert set(ledger.counts().values()) == {0}
    monkeypatch.setattr(files, "_LARGEST", 1_000)
    for indent in (None, 2):
        with pytest.raises(DataError, match=r"of more than 1,000 bytes"):
            import_files(ledger, [as_json(tmp_path / "large.json", samples(), indent=indent)])


def test_nothing_is_learnt_from_a_log(ledger: Ledger, tmp_path: Path) -> None:
    """Not even where the same prompts come again as training data."""
    take(ledger, as_json(tmp_path / "log.json", [samples()[2]]))
    (tmp_path / "t.jsonl").write_text(
        '{"prompt": "Why?", "completion": "So."}\n{"prompt": "How?", "completion": "So."}'
    )
    done = import_files(ledger, [tmp_path / "t.jsonl"])
    assert (done.episodes, [s.why for s in done.skipped]) == (
        1,
        ["its task is in split 'evaluation', which stays apart"],
    )
    done = import_files(ledger, [as_json(tmp_path / "log.json", samples())], split="train")
    assert (done.episodes, len(done.skipped)) == (2, 1)


def test_our_own_log_of_inspect(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = own_log(tiny_model)
    with Ledger.open(tmp_path / "other.sqlite") as ledger:
        assert (take(ledger, log).episodes, ledger.counts()["tasks"]) == (6, 3)
        by_item = {(e.meta["sample"], e.index): e for e in ledger.episodes()}
        for line in Path("samples.jsonl").read_text().splitlines():
            row = json.loads(line)
            episode = by_item[row["id"], row["repeat"]]
            found = said(ledger, episode)
            assert episode.cost.completion_tokens == row["tokens"]
            assert (found["success"].value, found["exact"].status) == (row["score"], row["status"])
            if row["status"] == "scored":
                assert found["exact"].source == Source(kind="verifier", name="exact", version="2")
        answers = sorted(ledger.task(e.task_id).answer["answer"] for e in by_item.values())
        assert answers == ["0", "0", "1", "1", "2", "2"]


@pytest.mark.slow
@pytest.mark.skipif("METIER_HARNESS" not in os.environ, reason="needs inspect-ai: make test-harness")
def test_a_log_that_inspect_wrote(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(
        """
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import includes, match
from inspect_ai.solver import generate, solver, system_message

@solver
def breaks():
    async def solve(state, generate):
        if (state.sample_id, state.epoch) == (2, 2):
            raise ValueError("broke")
        return state
    return solve

def outputs():
    while True:
        made = ModelOutput.from_content("mockllm/model", "The sum is 2.")
        made.usage = ModelUsage(input_tokens=9, output_tokens=5, total_tokens=14)
        yield made

task = Task(
    dataset=[Sample(id=n, input=f"What is {n} plus {n}?", target=str(2 * n)) for n in (1, 2)],
    solver=[system_message("You add."), breaks(), generate()], scorer=[includes(), match(location="any")], name="sums",
)
for form in ("eval", "json"):
    eval(task, model=get_model("mockllm/model", custom_outputs=outputs()), epochs=2, log_dir=form, log_format=form,
         fail_on_error=False, display="plain", max_samples=1)
"""
    )
    python = Path(os.environ["METIER_HARNESS"]).absolute() / "python"
    done = subprocess.run([python, "sums.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for form in ("eval", "json"):
        (log,) = (tmp_path / form).iterdir()
        took = take(ledger, log, source=form)
        assert (took.format, took.episodes, took.feedback, took.skipped) == ("inspect", 4, 8, [])
        found = [(e, said(ledger, e)) for e in ledger.episodes(run_id=took.run_id)]
        assert sorted((e.meta["sample"], e.index, f["includes"].value) for e, f in found if e.error is None) == [
            ("1", 0, 1.0), ("1", 1, 1.0), ("2", 0, 0.0),
        ]  # fmt: skip
        ((broken, statements),) = [(e, f) for e, f in found if e.error is not None]
        assert (broken.meta["sample"], broken.index) == ("2", 1)
        assert [(f.status, f.value) for f in statements.values()] == [("unscored", None)] * 2
        whole = next(e for e, _ in found if e.error is None)
        assert [m.role for m in whole.messages] == ["system", "user", "assistant"]
        assert (whole.weights.checkpoint, whole.cost.completion_tokens) == ("mockllm/model", 5)


# --- lm-eval -----------------------------------------------------------------------------

CHAT = json.dumps([{"role": "user", "content": "What is 1 plus 1?"}])
TIME = "2026-01-01T00-00-00.123456"


def written(way: str, value: Any, **more: Any) -> dict[str, Any]:
    """A row of a task that lets the model write, as lm-eval 0.4 puts it down."""
    return {
        "doc_id": 0, "doc": {"question": "1+1"}, "target": "2", "filter": way, "metrics": ["exact_match"],
        "arguments": {"gen_args_0": {"arg_0": [CHAT], "arg_1": {"max_gen_toks": 16, "do_sample": False}}},
        "resps": [["It is 2."]], "filtered_resps": ["2"], "doc_hash": "h0", "exact_match": value, **more,
    }  # fmt: skip


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_sample_log_of_lm_eval(ledger: Ledger, tmp_path: Path) -> None:
    results = {"model_name": "maker/m", "versions": {"sums": 3.0}, "lm_eval_version": "0.4.13"}
    (tmp_path / f"results_{TIME}.json").write_text(json.dumps(results))
    rows = [
        written("strict", 1.0),
        written("loose", float("nan")),
        written("loose", 1.0, doc_id=1, metrics=["exact_match", "f1"]),
    ]
    done = take(ledger, lines(tmp_path / f"samples_sums_{TIME}.jsonl", rows))
    assert (done.format, done.episodes, done.feedback, done.skipped) == ("lm-eval", 2, 4, [])
    first, second = sorted(ledger.episodes(), key=lambda one: str(one.meta["sample"]))
    assert [(m.role, m.content) for m in first.messages] == [("user", "What is 1 plus 1?"), ("assistant", "It is 2.")]
    assert (first.weights.checkpoint, first.sampling.temperature, first.sampling.max_turn_tokens) == ("maker/m", 0, 16)
    task = ledger.task(first.task_id)
    assert (task.kind, task.answer, task.split) == ("sums", {"answer": "2"}, "evaluation")
    strict, loose = said(ledger, first)["exact_match,strict"], said(ledger, first)["exact_match,loose"]
    assert (strict.value, strict.source.version) == (1.0, "lm-eval 0.4.13, sums 3.0")
    assert (strict.source.kind, strict.evidence["filtered"]) == ("verifier", ["2"])
    assert (loose.value, loose.status, loose.reason) == (None, "unscored", "it is nan")
    missing = said(ledger, second)["f1,loose"]
    assert (missing.value, missing.status, missing.reason) == (None, "unscored", "the row has no such metric")


def test_several_attempts_have_one_metric(ledger: Ledger, tmp_path: Path) -> None:
    done = take(ledger, lines(tmp_path / "rows.jsonl", [written("maj@3", 1.0, resps=[["2", "3", "2"]])]))
    assert (done.episodes, done.feedback) == (3, 1)
    (statement,) = ledger.feedback()
    assert [ledger.episode(e).messages[-1].content for e in statement.about] == ["2", "3", "2"]
    assert {e.weights.checkpoint for e in ledger.episodes()} == {"unknown"}


def weighed(contexts: list[str], choices: list[str], logs: list[Any]) -> dict[str, Any]:
    asked = zip(contexts, choices, strict=True)
    return {
        "doc_id": 0, "doc": {}, "target": "1", "filter": "none",
        "metrics": ["acc", "parts"], "acc": 0.0, "parts": [1, 0],
        "arguments": {f"gen_args_{n}": {"arg_0": c, "arg_1": a} for n, (c, a) in enumerate(asked)},
        "resps": [[[str(one), "False"]] for one in logs], "filtered_resps": [[str(one), "False"] for one in logs],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "spoken"),
    [
        # -3.5 is the highest of -9, -3.5 and -12
        (weighed(["Q: sky?"] * 3, [" green", " blue", " red"], [-9.0, -3.5, -12.0]), ["Q: sky?", " blue"]),
        (weighed(["It fell as Sue", "It fell as Sam"], [" left."] * 2, [-2.0, -1.0]), ["It fell as ", "Sam left."]),
        (weighed(["Once upon a"], [" time"], [-0.5]), ["Once upon a"]),
    ],
)
def test_choices_that_were_weighed(ledger: Ledger, tmp_path: Path, row: dict[str, Any], spoken: list[str]) -> None:
    done = take(ledger, lines(tmp_path / "samples_sky.jsonl", [row]))
    assert [m.content for e in ledger.episodes() for m in e.messages] == spoken
    assert [(f.criterion, f.value) for f in ledger.feedback()] == [("acc", 0.0)]
    assert [s.place for s in done.skipped] == ["samples_sky.jsonl:1, parts"]


def test_bad_rows_are_named_and_good_ones_kept(ledger: Ledger, tmp_path: Path) -> None:
    row = weighed(["a"] * 2, [" b", " c"], ["?", -1.0])
    path = lines(
        tmp_path / "r.jsonl", [written("none", True), '{"doc_id": 1, "re', written("none", 1, arguments=None), row]
    )
    done = take(ledger, path)
    assert done.episodes == 1 and [f.value for f in ledger.feedback()] == [1.0]
    assert {s.place: s.why for s in done.skipped} == {
        "r.jsonl:2": "not valid JSON",
        "r.jsonl:3": "it says not what was asked: `arguments` is missing",
        "r.jsonl:4": "a choice has no log-probability",
    }


@pytest.mark.slow
@pytest.mark.skipif("METIER_HARNESS" not in os.environ, reason="needs lm-eval: make test-harness")
def test_logs_that_lm_eval_wrote(ledger: Ledger, tmp_path: Path) -> None:
    """With its model of random answers: a task that lets it write, with two filters, and one that weighs choices."""
    lines(
        tmp_path / "docs.jsonl",
        [{"q": f"What is {n}?", "choices": [f"a{n}", f"b{n}"], "gold": n % 2} for n in range(8)],
    )
    common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}
test_split: test
doc_to_text: "{{{{q}}}}"
metadata: {{version: 2.0}}
"""
    (tmp_path / "write.yaml").write_text(
        f"""{common}
task: write
output_type: generate_until
doc_to_target: "lol"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 16, do_sample: false}}
filter_list:
  - {{name: number, filter: [{{function: regex, regex_pattern: "(\\\\d+)"}}, {{function: take_first}}]}}
  - {{name: whole, filter: [{{function: take_first}}]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    (tmp_path / "pick.yaml").write_text(
        f"""{common}
task: pick
output_type: multiple_choice
doc_to_target: "{{{{gold}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    done = subprocess.run(
        [
            Path(os.environ["METIER_HARNESS"]).absolute() / "lm_eval", "--model", "dummy", "--tasks", "write,pick",
            "--include_path", ".", "--output_path", "out", "--log_samples",
        ],
        cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, list[tuple[Episode, dict[str, float]]]] = {}
    for task in ("write", "pick"):
        (log,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        took = take(ledger, log, source=task)
        assert (took.format, took.episodes, took.skipped) == ("lm-eval", 8, [])
        episodes = ledger.episodes(run_id=took.run_id)
        found[task] = [(e, {name: f.value for name, f in said(ledger, e).items()}) for e in episodes]
    assert all(values == {"exact_match,number": 0.0, "exact_match,whole": 1.0} for _, values in found["write"])
    assert {e.messages[-1].content for e, _ in found["write"]} == {"lol"}
    for episode, values in found["pick"]:
        doc = episode.meta["doc"]
        right = episode.messages[-1].content.strip() == doc["choices"][doc["gold"]]
        assert values == {"acc": float(right)}
    versions = {f.source.version.partition(",")[2] for f in ledger.feedback()}
    assert versions == {" write 2.0", " pick 2.0"}


def test_the_command(tmp_path: Path) -> None:
    path, ledger = packed(tmp_path / "log.eval", samples(), head="header.json"), tmp_path / "l.sqlite"
    done = CliRunner().invoke(app, ["ledger", "import", str(path), "--ledger", str(ledger), "--json"])
    told = json.loads(done.output)
    assert (done.exit_code, told["format"], told["episodes"], told["skipped"]) == (0, "inspect", 3, [])
    shown = CliRunner().invoke(app, ["ledger", "stats", "--ledger", str(ledger)])
    assert "score on 'match' by verifier match" in shown.output
