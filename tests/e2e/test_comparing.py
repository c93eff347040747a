"""From groups to comparisons to models: the stages of the recipe `preferences`, on a tiny model that says words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metier.base.config import find_recipe, load_yaml
from metier.base.errors import ConfigError, DataError
from metier.feedback.people.simulated import Pair, asked
from metier.recipes.runner import run
from metier.recipes.settings import Recipe
from metier.records.ledger import Ledger
from metier.records.lineage import why
from metier.records.types import Suite
from metier.tasks.files import FileFamily

# A word with an "e" in it is better than one without; about one in two of those that are drawn has one.
PLUGIN = """
from metier.feedback.verifiers.protocol import Verdict
from metier.feedback.verifiers.registry import register

class Holds:
    name, version = "compared_e", "1"

    def verify(self, task, attempt, params):
        said = "".join(m.content for m in attempt.messages if m.role == "assistant")
        return Verdict(score=float("e" in said), reason=said)

register(Holds())
"""
WORDS = {"top_k": 16, "max_turn_tokens": 1, "max_turns": 1}
STAGES: list[dict[str, Any]] = [
    {"kind": "draw", "name": "answers", "split": "train", "tasks": 40, "sampling": WORDS},
    {"kind": "draw", "name": "gold", "split": "train", "skip": 40, "tasks": 24, "sampling": WORDS},
    {"kind": "draw", "name": "held", "split": "heldout", "tasks": 24, "sampling": WORDS},
    {"kind": "crowd", "name": "people", "data": "answers", "people": {"careful": 3, "adversarial": 1}, "pairs": 2},
    {"kind": "judge", "name": "judge", "gold": "gold", "judges": "people", "lr": 1e-2, "epochs": 4, "batch": 4},
    {"kind": "dataset", "name": "alike", "views": [{"kind": "pairs", "where": {"criteria": ["better"]}}]},
    {"kind": "dataset", "name": "weighted", "views": [
        {"kind": "pairs", "where": {"criteria": ["better"]}, "pool": {"method": "dawid-skene"}, "weigh": True}]},
    {"kind": "fit", "name": "reward", "data": "weighted", "objective": "reward", "lr": 1e-2, "epochs": 2, "heads": 2},
    {"kind": "measure", "name": "measured", "of": "reward", "data": "held"},
    {"kind": "fit", "name": "dpo", "data": "alike", "objective": "dpo", "lr": 1e-2, "epochs": 6, "batch": 8},
    {"kind": "evaluate", "name": "before", "splits": {"heldout": 24}, "sampling": {**WORDS, "temperature": 1.0}},
    {"kind": "evaluate", "name": "after", "of": "dpo", "splits": {"heldout": 24}, "sampling": {
        **WORDS, "temperature": 1.0}},
    {"kind": "report"},
]  # fmt: skip


def recipe(folder: Path, model: Path, stages: list[dict[str, Any]]) -> Path:
    rows = []
    for split, n in (("heldout", 24), ("train", 64)):
        for number in range(n):
            chat = [{"role": "user", "content": f"Say a word, {split} {number}, {number * 7919 % 1009}."}]
            rows.append(json.dumps({"messages": chat, "verifier": "compared_e", "split": split}))
    (folder / "tasks.jsonl").write_text("\n".join(rows))
    (folder / "plugin.py").write_text(PLUGIN)
    settings = {
        "name": "tiny", "seed": 1, "model": {"name": str(model), "dtype": "float32"}, "tasks": {"file": "tasks.jsonl"},
        "plugins": ["plugin.py"], "stages": stages,
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(json.dumps(settings))
    return folder / "tiny.yaml"


def test_comparisons_become_a_reward_model_and_a_policy(tiny_model: Path, tmp_path: Path) -> None:
    found = run(str(recipe(tmp_path, tiny_model, STAGES)), folder=str(tmp_path / "run"))
    done = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "run" / "stages").glob("*.json")}
    assert done["people"]["statements"] == 3 * done["people"]["pairs"] > 60
    assert done["judge"]["fit"] == "undecided" and done["judge"]["statements"] == 0, "too little gold to be believed"
    measured = done["measured"]
    assert measured["low"] > 0.8 and measured["n"] == len(measured["pairs"]) > 24
    assert done["after"]["heldout"]["success"] > done["before"]["heldout"]["success"] + 0.2
    with Ledger.open(tmp_path / "ledger.sqlite", create=False) as ledger:
        said = ledger.feedback(kind="preference")
        assert Counter(f.source.kind for f in said) == {"person": done["people"]["statements"]}
        assert {f.source.version for f in said if f.source.kind == "person"} == {"simulated"}
        (link, *_) = why(ledger, done["dpo"]["checkpoint"]).checkpoints
        assert {part.source.kind for d in link.datasets for part in d.feedback} >= {"person"}
        (rows,) = {d.name: d for d in ledger.datasets(found.run_id)}["alike"].query["built"]["views"]
        assert rows["made"] > 0
    assert found.report is not None and "after" in found.report.read_text()
    again = run(str(tmp_path / "tiny.yaml"), folder=str(tmp_path / "run"))  # all is done: nothing is done again
    assert again.run_id == found.run_id


def test_a_fit_that_was_stopped_after_its_training_is_not_trained_again(tiny_model: Path, tmp_path: Path) -> None:
    stages = [s for s in STAGES if s.get("name") in ("answers", "people", "alike", "dpo")]
    file = str(recipe(tmp_path, tiny_model, stages))
    run(file, folder=str(tmp_path / "run"))
    finished = tmp_path / "run" / "stages" / "dpo.json"
    before = finished.read_text()
    finished.unlink()
    stamp = (tmp_path / "run" / "checkpoints" / "dpo" / "model.safetensors").stat().st_mtime_ns
    run(file, folder=str(tmp_path / "run"))
    assert finished.read_text() == before
    assert (tmp_path / "run" / "checkpoints" / "dpo" / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "people", "data": "elsewhere"}, "takes episodes from 'elsewhere', which no earlier stage draws"),
        ({"name": "dpo", "data": "people"}, "takes data from 'people', which no earlier stage builds"),
        ({"name": "dpo", "objective": "dpoo"}, "dpoo"),
        ({"name": "dpo", "objective": "grpo"}, "'grpo' learns from episodes"),
        ({"name": "dpo", "objective": "distill"}, "distill needs a teacher"),
        ({"name": "after", "of": "reward"}, "is of 'reward', which no earlier stage trains"),
        ({"name": "measured", "of": "dpo"}, "measures 'dpo', which no earlier stage fits as a reward model"),
        ({"name": "gold", "split": "heldout"}, "split 'heldout' is both trained on and evaluated on"),
        ({"name": "people", "people": {"careless": 2}}, "careless"),
    ],
)
def test_stages_that_cannot_follow_are_refused(
    change: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    stages = [{**stage, **change} if stage.get("name") == change["name"] else stage for stage in STAGES]
    order = {"dpo": 20, "measured": 21, "before": 22, "after": 23}
    stages.sort(key=lambda s: order.get(s.get("name", "report"), 24 if s["kind"] == "report" else 0))
    with pytest.raises(ConfigError, match=said):
        run(str(recipe(tmp_path, tiny_model, stages)), folder=str(tmp_path / "run"))


def test_a_judge_does_not_learn_from_what_is_tested(tiny_model: Path, tmp_path: Path) -> None:
    stages = [stage for stage in STAGES if stage.get("name") in ("answers", "gold", "people", "judge")]
    file = recipe(tmp_path, tiny_model, stages)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        tasks = FileFamily(tmp_path / "tasks.jsonl", lambda name: pytest.fail(name)).tasks("train", 64, 1)
        ledger.add_tasks(tasks)
        ledger.add_suite(Suite(name="exam", version="1", task_ids=tuple(task.id for task in tasks)))
    with pytest.raises(DataError, match=r"stage 'judge': task .* is also in suite 'exam'"):
        run(str(file), folder=str(tmp_path / "run"))


def test_people_have_their_habits() -> None:
    pairs = [
        Pair(episodes=(f"a{n}", f"b{n}"), better=n % 2, lengths=(10, 20))  # type: ignore[arg-type]
        for n in range(2000)
    ]
    people = {"careful": 1, "hasty": 1, "length": 1, "correlated": 2, "adversarial": 1}
    said = asked(pairs, people, votes=6, criterion="better", seed=1)  # type: ignore[arg-type]
    better = {pair.episodes[pair.better] for pair in pairs}
    right, longer = Counter[str](), Counter[str]()
    opinions: dict[tuple[str, str], dict[str, str]] = {}
    for one in said:
        chosen = one.about[int(one.value)]
        right[one.source.name] += chosen in better
        longer[one.source.name] += chosen.startswith("b")
        opinions.setdefault(tuple(sorted(one.about)), {})[one.source.name] = chosen  # type: ignore[arg-type]
    shares = {name: count / len(pairs) for name, count in right.items()}
    expected = {"careful-1": 0.92, "hasty-1": 0.62, "adversarial-1": 0.15, "correlated-1": 0.9 * 0.58 + 0.1 * 0.62}
    for name, share in expected.items():
        assert abs(shares[name] - share) < 0.04, (name, shares[name])
    assert abs(longer["length-1"] / len(pairs) - (0.85 + 0.15 * 0.5)) < 0.04
    alike = sum(o["correlated-1"] == o["correlated-2"] for o in opinions.values()) / len(pairs)
    assert alike > 0.85  # both were right far less often
    assert sum(f.about[0].startswith("a") for f in said) / len(said) == pytest.approx(0.5, abs=0.03)
    assert {f.propensity for f in said} == {1.0}
    assert asked(pairs[:3], people, votes=2, criterion="better", seed=1)[0].propensity == pytest.approx(2 / 6)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="7 people are to be asked of each pair, and there are 6"):
        asked(pairs, people, votes=7, criterion="better", seed=1)  # type: ignore[arg-type]


def test_the_recipe_that_ships_can_be_read() -> None:
    names = [stage.name for stage in load_yaml(find_recipe("preferences"), Recipe).stages]
    assert names.index("judge") < names.index("weighted") < names.index("policy-weighted")
