"""`metier evaluate`: suites from everywhere, results that are kept under what they depend on, and what comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from metier.base.errors import ConfigError, DataError, MetierError
from metier.cli.evaluate import evaluate
from metier.cli.gate import gate
from metier.cli.runs import show
from metier.cli.stats import stats_app
from metier.evaluate.declared import Pinned, read_suite, verifier_versions
from metier.evaluate.evaluation import Baseline, Evaluation, Measured, run_suite
from metier.evaluate.suites import Budget
from metier.feedback.data.declaration import Decontaminate
from metier.feedback.data.decontaminate import held_out
from metier.feedback.verifiers.exact import Exact
from metier.records.ledger import Ledger
from metier.records.types import Checkpoint, DatasetManifest, Message, Run, Sampling, Tool
from metier.rollout.policy import Said, Talks, Transcript

SHORT = ["sampling.max_turn_tokens=4"]


# --- a policy that says what it is told to -----------------------------------------------------


class Fixed:
    """Answers by a function of the question and the seed; an answer of None is a network that failed."""

    template_hash = "fixed"

    def __init__(self, answer: Callable[[str, int], str | None]) -> None:
        self.answer, self.asked = answer, 0

    def talks(self, sampling: Sampling) -> Talks:
        return _Talks(self)


class _Talks:
    def __init__(self, policy: Fixed) -> None:
        self._policy, self._due, self._kept = policy, dict[int, str | None](), dict[int, Transcript]()

    def begin(self, number: int, messages: Sequence[Message], tools: Sequence[Tool], seed: int) -> str | None:
        self._policy.asked += 1
        self._due[number] = self._policy.answer(messages[-1].content, seed)
        self._kept[number] = Transcript(prompt_tokens=10)
        return None

    def step(self) -> list[tuple[int, Said]]:
        due, self._due = self._due, {}
        return [
            (n, Said(Message(role="assistant", content=said or ""), "stop", 5, None, None if said else "no route"))
            for n, said in due.items()
        ]

    def tell(self, number: int, messages: Sequence[Message]) -> bool:
        return False

    def end(self, number: int) -> None:
        pass

    @property
    def speaking(self) -> bool:
        return bool(self._due)

    def transcript(self, number: int) -> Transcript:
        return self._kept[number]


def tasks_file(tmp_path: Path, n: int = 8, **more: Any) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [
        {
            "prompt": f"What is {n} and {n}?",
            "answer": str(2 * n),
            "verifier": "exact",
            "split": "test",
            "cluster": f"c{n // 2}",
            **more,
        }
        for n in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def right(question: str, seed: int) -> str:
    return str(2 * int(question.split()[2]))


def measured(answer: Callable[[str, int], str | None] = right, **more: Any) -> Measured:
    return Measured(name="fixed", identity={"weights": "1"}, policy=Fixed(answer), **more)


@pytest.fixture
def pinned(tmp_path: Path) -> Pinned:
    return read_suite(str(tasks_file(tmp_path)))


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def again(pinned: Pinned, *overrides: str, tmp_path: Path) -> Pinned:
    return read_suite(str(tmp_path / "sums.jsonl"), overrides=overrides)


def figures(done: Evaluation) -> dict[str, Any]:
    told = done.to_json()
    return {key: told[key] for key in ("n", "mean", "unscored", "not_run", "fresh", "kept")}


# --- what is kept, and under what -----------------------------------------------------------------


def test_the_same_evaluation_is_read_and_more_repeats_go_on_from_it(
    pinned: Pinned, ledger: Ledger, tmp_path: Path
) -> None:
    who = measured(lambda q, seed: right(q, seed) if seed % 2 else "no")
    first = run_suite(ledger, who, pinned, chunk=3)
    assert (first.fresh, len(first.samples)) == (8, 8)
    second = run_suite(ledger, who, pinned, chunk=5)
    assert (second.id, second.samples, second.fresh) == (first.id, first.samples, 0)
    more = run_suite(ledger, who, again(pinned, "repeats=3", tmp_path=tmp_path), chunk=3)
    assert (more.id, more.fresh, len(more.samples)) == (first.id, 16, 24)
    assert [row for row in more.samples if row.repeat == 0] == list(first.samples)
    assert len({row.score for row in more.samples}) == 2  # other attempts have other seeds
    assert len({row.episode for row in more.samples}) == 24
    assert who.policy.asked == 24  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", ["weights", "template", "sampling", "seed", "tasks", "verifier"])
def test_nothing_is_reused_where_anything_differs(
    change: str, pinned: Pinned, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_suite(ledger, measured(), pinned)
    who, what, seed = measured(), pinned, 0
    if change == "weights":
        who = Measured(name="fixed", identity={"weights": "2"}, policy=Fixed(right))  # in the same folder
    elif change == "template":
        who.policy.template_hash = "other"
    elif change == "sampling":
        what = again(pinned, "sampling.temperature=0.5", tmp_path=tmp_path)
    elif change == "seed":
        seed = 1
    elif change == "tasks":
        tasks_file(tmp_path, n=7)
        what = again(pinned, tmp_path=tmp_path)
    else:
        monkeypatch.setattr(Exact, "version", "99")
    other = run_suite(ledger, who, what, seed=seed)
    assert other.id != first.id
    assert other.fresh == len(other.samples) >= 7


def test_a_stop_costs_one_chunk_and_changes_nothing(pinned: Pinned, tmp_path: Path) -> None:
    def answer(question: str, seed: int) -> str:
        return right(question, seed) if seed % 3 else "no"

    with Ledger.open(tmp_path / "whole.sqlite") as whole:
        expected = run_suite(whole, measured(answer), pinned, chunk=2)

    def stopped(done: int, *_: Any) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with Ledger.open(tmp_path / "stopped.sqlite") as ledger:
        with pytest.raises(KeyboardInterrupt):
            run_suite(ledger, measured(answer), pinned, chunk=2, on_chunk=stopped)
        who = measured(answer)
        found = run_suite(ledger, who, pinned, chunk=2)
        assert (who.policy.asked, found.fresh) == (4, 4)  # type: ignore[attr-defined]
    told = [{**row.to_json(), "seconds": 0} for row in found.samples]
    assert told == [{**row.to_json(), "seconds": 0} for row in expected.samples]


def test_what_fails_is_kept_counted_and_tried_again_if_asked(pinned: Pinned, ledger: Ledger) -> None:
    down = {"What is 3 and 3?", "What is 5 and 5?"}
    first = run_suite(ledger, measured(lambda q, seed: None if q in down else right(q, seed)), pinned)
    assert figures(first) == {"n": 6, "mean": 1.0, "unscored": 2, "not_run": 0, "fresh": 8, "kept": 0}
    assert first.to_json()["reasons"] == {"network: no route": 2}
    who = measured()
    assert figures(run_suite(ledger, who, pinned))["unscored"] == 2  # not by itself: that would be another result
    assert who.policy.asked == 0  # type: ignore[attr-defined]
    mended = run_suite(ledger, who, pinned, again=True)
    assert figures(mended) == {"n": 8, "mean": 1.0, "unscored": 0, "not_run": 0, "fresh": 2, "kept": 6}
    assert figures(run_suite(ledger, who, pinned, again=True))["kept"] == 8
    assert len(ledger.episodes(run_id=first.id)) == 10  # the ledger only grows


def test_a_budget_ends_it_and_a_larger_one_goes_on(pinned: Pinned, ledger: Ledger, tmp_path: Path) -> None:
    some = run_suite(ledger, measured(), again(pinned, "budget.episodes=3", tmp_path=tmp_path), chunk=2)
    assert figures(some) == {"n": 3, "mean": 1.0, "unscored": 5, "not_run": 5, "fresh": 3, "kept": 0}
    assert some.to_json()["reasons"] == {"not run: the budget was spent": 5}
    assert some.samples[-1].tokens is None  # not 0
    more = run_suite(ledger, measured(), again(pinned, "budget.tokens=75", tmp_path=tmp_path), chunk=2)
    assert figures(more) == {"n": 5, "mean": 1.0, "unscored": 3, "not_run": 3, "fresh": 2, "kept": 3}  # 15 tokens each
    rest = run_suite(ledger, measured(), pinned, chunk=2)
    assert (rest.fresh, rest.id) == (3, some.id)
    assert Budget(seconds=5).room([], 6.0) == 0 and Budget(seconds=5).room([], 4.0) > 1000


def test_it_ends_as_soon_as_it_is_decided(ledger: Ledger, tmp_path: Path) -> None:
    suite = read_suite(str(tasks_file(tmp_path, n=200)))
    worse = Baseline(scores={task.id: [0.0] for task in suite.tasks})
    done = run_suite(ledger, measured(), suite, chunk=10, against=worse)
    assert done.verdict is not None and done.verdict.outcome == "better"
    assert figures(done)["n"] < 100
    assert done.to_json()["reasons"] == {"not run: it was decided before": figures(done)["not_run"]}
    # One difference a cluster of two tasks, and only whole ones: never more than half of the samples.
    assert done.verdict.n <= figures(done)["n"] / 2
    same = Baseline(scores={task.id: [1.0] for task in suite.tasks}, margin=0.2)
    equal = run_suite(ledger, measured(), suite, chunk=10, against=same, seed=1)
    assert equal.verdict is not None and equal.verdict.outcome == "equivalent"
    with pytest.raises(DataError, match="one repeat"):
        run_suite(ledger, measured(), read_suite(str(tmp_path / "sums.jsonl"), overrides=["repeats=2"]), against=worse)


# --- suites ----------------------------------------------------------------------------------------


def test_a_suites_file_is_pinned(tmp_path: Path, ledger: Ledger) -> None:
    tasks_file(tmp_path)
    file = tmp_path / "suite.yaml"
    text = "name: sums\nversion: '2'\nsource: {file: sums.jsonl, split: test}\nrepeats: 2\n"
    file.write_text(text)
    suite = read_suite(str(file))
    assert (suite.suite.name, suite.suite.version, len(suite.tasks)) == ("sums", "2", 8)
    file.write_text(text + f"hash: {suite.suite.hash[:16]}\n")
    assert read_suite(str(file)).suite == suite.suite
    run_suite(ledger, measured(), suite)
    tasks_file(tmp_path, n=9)
    with pytest.raises(DataError, match="pinned to tasks of hash") as refused:
        read_suite(str(file))
    assert "\n" not in str(refused.value)
    file.write_text(text)
    with pytest.raises(DataError, match=r"sums 2 has other tasks in this ledger.*raise its version"):
        run_suite(ledger, measured(), read_suite(str(file)))


def test_what_is_not_said_of_sampling_is_greedy(tmp_path: Path) -> None:
    for overrides in ([], ["sampling.max_turn_tokens=9"]):
        sampling = read_suite(str(tasks_file(tmp_path)), overrides=overrides).settings.sampling.record()
        assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)
    assert sampling.max_turn_tokens == 9


def test_a_familys_split_is_what_a_recipe_measures(tmp_path: Path) -> None:
    from metier.base.seeds import derive_seed
    from metier.tasks.desk.family import DeskFamily

    short = read_suite("desk:heldout", overrides=["source.n=6"])
    # The tasks of a recipe of seed 0: see `Context.tasks`.
    assert list(short.tasks) == DeskFamily().tasks("heldout", 6, derive_seed(0, "tasks", "heldout"))
    assert short.suite.name == "desk/heldout" and short.suite.version.endswith(short.suite.hash[:12])
    (tmp_path / "s.json").write_text(
        json.dumps({"name": "s", "version": "1", "source": {"family": "desk", "split": "heldout", "n": 6}})
    )
    assert read_suite(str(tmp_path / "s.json")).suite.hash == short.suite.hash


@pytest.mark.parametrize("mapped", [False, True])
def test_a_dataset_of_hugging_face(mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="needs pip install 'metier[datasets]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    rows: list[dict[str, Any]] = [{"question": f"What is {n} plus 1?", "answer": f"#### {n + 1}"} for n in range(6)]
    if mapped:
        rows = [{"ask": f"{n} plus 1", "is": str(n + 1), "about": f"g{n % 2}"} for n in range(6)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source: dict[str, Any] = {"dataset": str(folder), "split": "test"}
    if mapped:
        source["columns"] = {"prompt": "What is {ask}?", "answer": "is", "cluster": "about"}
        source["verifier"] = {"name": "math", "answer": "7"}
    (tmp_path / "suite.yaml").write_text(json.dumps({"name": "plus", "version": "1", "source": source}))
    suite = read_suite(str(tmp_path / "suite.yaml"))
    assert [task.split for task in suite.tasks] == ["test"] * 6
    assert "What is 2 plus 1?" in suite.tasks[2].messages[0].content
    assert suite.tasks[2].answer == {"answer": "3"}
    assert [task.verifiers[0].name for task in suite.tasks] == ["math"] * 6
    assert (suite.tasks[2].cluster == "g0") == mapped
    assert len(read_suite(str(tmp_path / "suite.yaml"), overrides=["source.n=2"]).tasks) == 2
    with pytest.raises(DataError, match="cannot be had"):
        read_suite(str(tmp_path / "suite.yaml"), overrides=["source.split=absent"])
    if mapped:
        with pytest.raises(DataError, match="row 1: there is no column 'wrong'; it has ask, is, about"):
            read_suite(str(tmp_path / "suite.yaml"), overrides=["source.columns.prompt=wrong"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"version": "1", "source": {"file": "x.jsonl"}}, "'name' is missing"),
        ({"name": "a:b", "version": "1", "source": {"file": "x"}}, "may not be empty or hold ':'"),
        ({"name": "a", "version": "1", "source": {}}, "one of family, file and dataset, not none"),
        ({"name": "a", "version": "1", "source": {"file": "x", "family": "desk"}}, "not family and file"),
        ({"name": "a", "version": "1", "source": {"family": "desk"}}, "a family needs a split"),
        ({"name": "a", "version": "1", "source": {"file": "x", "columns": {"a": "b"}}}, "belong to a dataset"),
        ({"name": "a", "version": "1", "source": {"file": "x"}, "hash": "abc"}, "too short to pin"),
        ({"name": "a", "version": "1", "source": {"file": "x"}, "repeat": 3}, "did you mean 'repeats'"),
        ({"name": "a", "version": "1", "source": {"file": "absent.jsonl"}}, "cannot read tasks"),
        ({"name": "a", "version": "1", "source": {"family": "desk", "split": "x"}}, "the desk has no split"),
    ],
)
def test_suites_that_make_no_sense(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(given))
    with pytest.raises(MetierError, match=said):
        read_suite(str(tmp_path / "s.yaml"))


def test_what_is_no_suite_and_what_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no suite 'nothing'; name a suite's file"):
        read_suite("nothing")
    with pytest.raises(DataError, match="no task family 'dsk'"):
        read_suite("dsk:heldout")
    with pytest.raises(DataError, match="a task has no verifier"):
        read_suite(str(tasks_file(tmp_path, verifier={})))
    with pytest.raises(ConfigError, match="users whom a model plays"):
        read_suite(str(tasks_file(tmp_path, user="A guest in a hurry.")))
    with pytest.raises(DataError, match="there is no verifier 'exat'"):
        read_suite(str(tasks_file(tmp_path, verifier={"name": "exat"})))
    both = {"name": "combination", "verifiers": [{"name": "exact", "answer": "1"}, {"name": "regex", "pattern": "1"}]}
    assert set(verifier_versions(read_suite(str(tasks_file(tmp_path, verifier=both))).tasks)) == {
        "combination", "exact", "regex",
    }  # fmt: skip


def trained_on(ledger: Ledger, task_id: str) -> None:
    """A checkpoint ckpt-x that learnt from this task."""
    ledger.add_run(Run(id="run-x", recipe="x", config={}, seed=0, folder="", code_version=""))
    ledger.add_dataset(
        DatasetManifest(
            id="data-x", kind="rl", name="x", run_id="run-x", stage="s", query={}, feedback_ids=(), episode_ids=(),
            task_ids=(task_id,),
        )
    )  # fmt: skip
    ledger.add_checkpoint(
        Checkpoint(id="ckpt-x", run_id="run-x", stage="s", step=1, path="", parent="smollm2", dataset_ids=("data-x",))
    )


def test_what_was_trained_on_is_refused_and_suites_are_known_to_the_cleaning(pinned: Pinned, ledger: Ledger) -> None:
    run_suite(ledger, measured(), pinned)
    tests = held_out(ledger, Decontaminate(), ("train", "test"))
    assert len(tests) == 8
    trained_on(ledger, pinned.tasks[4].id)
    with pytest.raises(DataError, match=f"ckpt-x was trained on task {pinned.tasks[4].id}"):
        run_suite(ledger, measured(checkpoint="ckpt-x"), pinned)


def test_two_evaluations_meet_at_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = read_suite(str(tasks_file(tmp_path, n=60)), overrides=["repeats=2"])
    where = tmp_path / "ledger.sqlite"
    with Ledger.open(where) as records:
        good = run_suite(records, measured(), suite)
        weak = measured(lambda q, seed: right(q, seed) if seed % 2 else "no")
        bad = run_suite(records, Measured(name="weak", identity={"weights": "2"}, policy=weak.policy), suite)
    (tmp_path / "gate.yaml").write_text("metrics: {score: {margin: 0.05}, tokens: {direction: lower, margin: 1}}")
    codes = []
    for one, two in ((good.id, bad.id), (bad.id[:12], f"{good.id}:sums:test")):
        with pytest.raises(typer.Exit) as ended:
            gate(run=one, against=two, config=tmp_path / "gate.yaml", ledger=str(where), as_json=True)
        codes.append(ended.value.exit_code)
        told = json.loads(capsys.readouterr().out)
    assert codes == [3, 1]  # tokens are all alike and have no range, so the good one is not passed either
    assert (told["run"], told["base"]) == ("weak", "fixed")
    score, tokens = told["metrics"]
    assert (score["n"], score["clusters"], score["base"]) == (60, 30, 1.0)
    assert tokens["why"] == "the data give no bound; say the metric's range"
    with Ledger.open(where) as records:
        assert [one.verdict for one in records.gates()] == ["inconclusive", "block"]


def test_a_stop_needs_a_baseline_of_successes(tmp_path: Path) -> None:
    suite, scores = str(tasks_file(tmp_path)), tmp_path / "scores.jsonl"
    rows = [{"id": task.id, "score": 7.5} for task in read_suite(suite).tasks]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"has a score of 7\.5: divide its scores by their range"):
        evaluate(model="./absent", suites=[suite], against=str(scores), stop=True, ledger=str(tmp_path / "l.sqlite"))
    with pytest.raises(
        MetierError, match="there is no checkpoint or run"
    ):  # a comparison without --stop takes any numbers
        evaluate(model="./absent", suites=[suite], against=str(scores), ledger=str(tmp_path / "l.sqlite"))


# --- the command, with a real model -------------------------------------------------------------------


def test_the_command_with_a_model(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    out = tmp_path / "samples.jsonl"
    how: dict[str, Any] = {"settings": [*SHORT, "sampling.temperature=1.0"], "n": 4, "repeats": 2, "as_json": True}
    suites = ["general:chat", "general:arithmetic"]
    evaluate(model=str(model), suites=suites, out=out, **how)
    first = json.loads(capsys.readouterr().out)
    assert [one["suite"] for one in first["suites"]] == ["general/chat", "general/arithmetic"]
    for one in first["suites"]:
        assert (one["n"], one["unscored"], one["fresh"], one["kept"]) == (8, 0, 8, 0)
        assert one["low"] <= one["mean"] <= one["high"] and 0 < one["tokens"] <= 32 and one["clusters"] == 4
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 16
    assert {"id", "repeat", "score", "cluster", "status", "reason", "suite", "model"} <= rows[0].keys()

    stats_app(["compare", str(out), str(out), "--cluster", "cluster", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["n"], told["repeats"], told["diff"]) == (8, 16, 0.0)
    stats_app(["passk", str(out), "--k", "2", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["tasks"], told["attempts"]) == (8, 16)
    assert told["pass@1"] == pytest.approx(sum(row["score"] for row in rows) / 16)
    # The run in the ledger says the same as the file.
    stats_app(
        ["compare", first["suites"][0]["evaluation"], str(out), "--metric", "tokens", "--json"], standalone_mode=False
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["n"], told["diff"], told["only_in_b"]) == (4, 0.0, 4)

    show(first["suites"][0]["evaluation"], as_json=True)
    (shown,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert (shown["stage"], shown["n"], shown["success"]) == ("general/chat", 8, first["suites"][0]["mean"])

    evaluate(model=str(model), suites=suites, out=tmp_path / "twice.jsonl", **how)
    second = json.loads(capsys.readouterr().out)
    assert [(one["fresh"], one["kept"]) for one in second["suites"]] == [(0, 8), (0, 8)]
    assert out.read_text() == (tmp_path / "twice.jsonl").read_text()

    import torch
    from safetensors.torch import load_file, save_file

    from metier.feedback.judges.voice import weights_hash
    from metier.models.hub import load_model

    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 1}, model / "model.safetensors", metadata={"format": "pt"})
    digest = weights_hash(load_model(str(model), dtype=torch.bfloat16))
    elsewhere = str(tmp_path / "new" / "ledger.sqlite")  # is made
    evaluate(model=str(model), suites=suites[:1], ledger=elsewhere, **how)
    assert json.loads(capsys.readouterr().out)["identity"] == {"weights": digest}
    with pytest.raises(MetierError, match="there is no checkpoint or run 'no such'"):
        evaluate(model="no such", suites=suites[:1], ledger=elsewhere, **how)
    evaluate(model=str(model), suites=suites[:1], against=str(out), **{**how, "as_json": False})
    printed = capsys.readouterr().out
    assert (
        "8 new samples and 0 kept" in printed and "against the baseline:" in printed
    )  # the same folder, other weights
    assert "general/chat" in printed and "unscored" in printed


def test_a_checkpoints_folder_is_known_by_its_note(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pinned: Pinned
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "metier.json").write_text(json.dumps({"id": "ckpt-x", "weights_hash": "…"}))
    suites, where = [str(tmp_path / "sums.jsonl")], str(tmp_path / "ledger.sqlite")
    how: dict[str, Any] = {"model": str(model), "suites": suites, "ledger": where, "settings": SHORT, "as_json": True}
    evaluate(**how)
    assert json.loads(capsys.readouterr().out)["model"].startswith("model@")
    with Ledger.open(where) as records:
        trained_on(records, pinned.tasks[4].id)
    with pytest.raises(DataError, match=f"ckpt-x was trained on task {pinned.tasks[4].id}"):
        evaluate(**how)
    evaluate(**{**how, "suites": ["general:chat"], "n": 2})
    assert json.loads(capsys.readouterr().out)["model"] == "ckpt-x"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"identity": "x"}, "--identity names weights behind an endpoint"),
        ({"stop": True}, "--stop needs a baseline"),
        ({"margin": 0.1}, "--margin belongs to --stop"),
        ({"suites": ["general:chat", "general:chat"]}, "two suites are called 'general/chat'"),
        ({"settings": ["endpoint.key=x"]}, "of an endpoint"),
        ({"settings": ["smpling.top_p=1"]}, "unknown key 'smpling'"),
        ({"plugin": [Path("absent.py")]}, "there is no plugin absent.py"),
        ({"endpoint": "http://127.0.0.1:1", "settings": ["sampling.top_k=3"]}, "takes no sampling.top_k"),
        ({"against": "absent.jsonl"}, "there is no file absent.jsonl"),
        ({"model": "./absent"}, "does not exist"),
        ({"model": "run-absent"}, "there is no checkpoint or run 'run-absent'"),
        ({"renderer": "chatlm"}, "--renderer must be one of"),
    ],
)
def test_the_command_refuses(given: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MetierError, match=said):
        evaluate(**{"model": "./absent", "suites": ["general:chat"], **given})


def test_an_endpoint_is_reused_only_under_an_identity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="the client is not installed: pip install 'metier[openai]'")
    from http.server import BaseHTTPRequestHandler

    from httpd import serving

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    suite = str(tasks_file(tmp_path, n=3))

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = {"role": "assistant", "content": right(asked["messages"][-1]["content"], 0)}
            body = {
                "id": "x", "object": "chat.completion", "created": 0, "model": "them",
                "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
            }  # fmt: skip
            text = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    def told(**more: Any) -> tuple[int, int, str]:
        evaluate(model="them", suites=[suite], endpoint=f"{url}/v1", as_json=True, **more)
        read = capsys.readouterr()
        one = json.loads(read.out)["suites"][0]
        assert (one["mean"], one["prompt_tokens"], one["tokens"]) == (1.0, 21, 3)
        return one["fresh"], one["kept"], read.err

    with serving(Answers) as url:
        assert told()[:2] == (3, 0)
        fresh, kept, said = told()
        assert (fresh, kept) == (3, 0) and "weights are not known, so nothing is reused" in said
        assert told(identity="2026-11-01")[:2] == (3, 0)
        assert told(identity="2026-11-01")[:2] == (0, 3)
        assert told(identity="2026-11-02")[:2] == (3, 0)
