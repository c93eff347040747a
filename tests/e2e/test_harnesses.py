"""Harnesses: lm-eval and Inspect against a served checkpoint; tasks of Inspect and of verifiers as families.

They bring many packages, so they live in environments of their own: `make test-harness`
makes them and names their programs' folders in METIER_HARNESS and METIER_VERIFIERS.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metier.cli.evaluate import evaluate
from served import KEY, Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("METIER_HARNESS" not in os.environ, reason="needs the harnesses: make test-harness"),
]

SUMS = [(f"What is {n} plus {n}? Answer with the number.", str(2 * n)) for n in range(1, 9)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server("smollm2", "--dtype", "float32", "--rows", "4")
    yield made
    assert made.stop() == 0


def run(program: str, *arguments: str, folder: Path, of: str = "METIER_HARNESS", **variables: str) -> None:
    done = subprocess.run(
        [str(Path(os.environ[of]) / program), *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def right(server: Server, pattern: str, holds: Callable[[str, str], bool]) -> float:
    """The share of sums that the model gets right when it is asked by the OpenAI client."""
    found = []
    with server.client() as client:
        for question, answer in SUMS:
            asked: list[Any] = [{"role": "user", "content": question}]
            reply = client.chat.completions.create(
                model=server.name, messages=asked, temperature=0, max_tokens=16, stop=["\n\n"]
            )
            match = re.search(pattern, reply.choices[0].message.content)
            found.append(match is not None and holds(match[1], answer))
    return sum(found) / len(found)


def test_a_task_of_lm_eval(server: Server, tmp_path: Path) -> None:
    rows = [json.dumps({"question": question, "answer": answer}) for question, answer in SUMS]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    (tmp_path / "sums.yaml").write_text(
        f"""
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/sums.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 16, do_sample: false}}
filter_list:
  - {{name: number, filter: [{{function: regex, regex_pattern: "(-?\\\\d+)\\\\D*$"}}, {{function: take_first}}]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    model = f"model={server.name},base_url={server.url}/chat/completions,num_concurrent=4,tokenized_requests=False"
    run(
        "lm_eval", "--model", "local-chat-completions", "--model_args", model, "--tasks", "sums", "--include_path", ".",
        "--apply_chat_template", "--output_path", "out", "--log_samples",
        folder=tmp_path, OPENAI_API_KEY=KEY,
    )  # fmt: skip
    (results,) = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(results.read_text())
    assert told["n-samples"]["sums"]["effective"] == len(SUMS)
    assert told["results"]["sums"]["exact_match,number"] == right(server, r"(-?\d+)\D*$", lambda said, a: said == a)


def test_a_task_of_inspect(server: Server, tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(
        f"""
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def sums():
    return Task(dataset=[Sample(input=q, target=a) for q, a in {SUMS!r}], solver=generate(), scorer=includes())
"""
    )
    run(
        "inspect", "eval", "sums.py", "--model", f"openai-api/metier/{server.name}", "--temperature", "0",
        "--max-tokens", "16", "--log-dir", "logs", "--log-format", "json", "--display", "plain",
        folder=tmp_path, METIER_API_KEY=KEY, METIER_BASE_URL=server.url,
    )  # fmt: skip
    (log,) = (tmp_path / "logs").glob("*.json")
    told = json.loads(log.read_text())
    assert (told["status"], told["results"]["completed_samples"]) == ("success", len(SUMS))
    accuracy = told["results"]["scores"][0]["metrics"]["accuracy"]["value"]
    assert accuracy == right(server, r"(?s)(.*)", lambda said, answer: answer in said)


def test_an_evaluation_is_a_log_of_inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(
        model="smollm2", suites=["desk:heldout"], n=4, repeats=2, out=Path("samples.jsonl"),
        inspect_logs=Path("logs"), settings=["sampling.temperature=1.0"], as_json=True,
    )  # fmt: skip
    (tmp_path / "read.py").write_text(
        """
import json
from inspect_ai.log import list_eval_logs, read_eval_log
(found,) = list_eval_logs("logs")
log = read_eval_log(found)
json.dump({
    "status": log.status, "epochs": log.eval.config.epochs, "total": log.results.total_samples,
    "mean": log.results.scores[0].metrics["mean"].value,
    "calls": sum(len(getattr(m, "tool_calls", None) or []) for s in log.samples for m in s.messages),
    "samples": [[s.id, s.epoch, s.scores["success"].value, s.output.completion] for s in log.samples],
}, open("read.json", "w"))
"""
    )
    run("python", "read.py", folder=tmp_path)
    read = json.loads((tmp_path / "read.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert (read["status"], read["epochs"], read["total"]) == ("success", 2, 8)
    assert [one[:3] for one in read["samples"]] == [[row["id"], row["repeat"] + 1, row["score"]] for row in rows]
    assert read["mean"] == sum(row["score"] for row in rows) / len(rows)
    assert read["calls"] == sum(row["tool_calls"] for row in rows)
    run("inspect", "view", "bundle", "--log-dir", "logs", "--output-dir", "page", folder=tmp_path)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [
        path.name for path in (tmp_path / "page" / "logs").glob("*desk-heldout*")
    ]


@pytest.mark.parametrize("of", ["inspect", "verifiers"])
def test_their_tasks_are_a_family_where_they_fit(of: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name(f"{of}_family.py")
    where = "METIER_HARNESS" if of == "inspect" else "METIER_VERIFIERS"
    run("python", str(script), folder=tmp_path, of=where, PYTHONPATH=str(script.parents[2] / "src"))
