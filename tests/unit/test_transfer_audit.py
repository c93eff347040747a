"""The transfer audit on small pools: what is read, what is counted, what is refused, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from metier.base.errors import ConfigError, DataError
from metier.cli.app import app
from metier.cli.transfer import transfer as command
from metier.evaluate.transfer.audit import Settings, audit_pool, high_reward
from metier.evaluate.transfer.exploits import exploit_clusters
from metier.evaluate.transfer.features import FEATURES, features_of
from metier.evaluate.transfer.pool import Pool, Sample, read_pool
from metier.evaluate.transfer.words import as_json, as_text
from metier.records.types import Message


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def run_transfer(*arguments: str) -> None:
    single = typer.Typer()
    single.command()(command)
    single(args=list(arguments), standalone_mode=False)


def rows_of(prompts: int, samples: int, seed: int = 0) -> list[dict[str, Any]]:
    """Right or wrong at random; `honest` is gold with noise, `sorry` counts apologies, which failing ones make."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        for _ in range(samples):
            gold = float(rng.random() < 0.5)
            sorry = rng.random() < (0.2 if gold else 0.6)
            text = "I am sorry, that cannot be done. " if sorry else f"Booked for {rng.integers(100)}. "
            rows.append(
                {
                    "prompt": f"Please book number {prompt}.",
                    "response": text + "So long. " * int(rng.integers(4)),
                    "reward": {"honest": gold + 0.4 * rng.normal(), "sorry": float(sorry) + 0.01 * rng.normal()},
                    "gold": gold,
                }
            )
    return rows


# --- reading -----------------------------------------------------------------------------


def test_every_form_of_a_row_is_read(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": "{}"}}]}
    result = {"role": "tool", "content": '{"error": "no such"}'}
    pool = read_pool(
        written(
            tmp_path / "pool.jsonl",
            [
                {"prompt": "Hi.", "response": "Hello.", "reward": {"a": 1}, "gold": True, "id": "x", "cluster": "c"},
                {"prompt": [chat[0]], "messages": [chat[1]], "reward": {"a": None}, "gold": None},
                {"task": "t-1", "messages": chat, "reward": 0.5, "episode": "ep-1"},
                {"task": "t-1", "prompt": "Hi.", "response": [call, result, chat[1]], "reward": {"a": "2"}, "gold": ""},
            ],
        )
    )
    first, second, third, fourth = pool.samples
    assert (first.id, first.prompt, first.cluster, first.gold) == ("x", "Hi.", "c", 1.0)
    assert second.gold is None and second.rewards == {"a": None}
    assert third.asked[0].content == "Hi." and third.said[0].content == "Hello." and third.rewards == {"reward": 0.5}
    assert (third.prompt, third.cluster, third.episode) == ("t-1", "t-1", "ep-1")
    assert fourth.rewards == {"a": 2.0} and fourth.gold is None and len(fourth.said) == 3
    assert pool.rewards == ("a", "reward") and not pool.skipped


def test_rows_that_cannot_be_used_are_named_and_stop_no_other(tmp_path: Path) -> None:
    good = {"prompt": "Hi.", "response": "Yes.", "reward": 1, "gold": 1, "id": "a"}
    bad: list[tuple[Any, str]] = [
        ("{no json\n", "not valid JSON"),
        ({**good, "id": "b", "prompt": None}, "no prompt and no task"),
        ({**good, "id": "c", "response": None}, "no response"),
        ({**good, "id": "d", "reward": {}}, "no reward"),
        ({**good, "id": "e", "gold": "fine"}, "gold: 'fine' is no number"),
        ({**good, "id": "f", "reward": {"r": "NaN"}}, "reward r: nan is no finite number"),
        ({**good, "id": "g", "messages": [{"role": "user", "content": "x"}]}, "none of an assistant"),
        (good, "stands in the file twice"),
    ]
    pool = read_pool(written(tmp_path / "pool.jsonl", [good, *(row for row, _ in bad)]))
    assert len(pool.samples) == 1
    assert [why in skipped.why for (_, why), skipped in zip(bad, pool.skipped, strict=True)] == [True] * len(bad)
    with pytest.raises(DataError, match="no row with a prompt"):
        read_pool(written(tmp_path / "none.jsonl", [row for row, _ in bad[:-1]]))


def test_features_can_be_checked_by_reading() -> None:
    said = (
        Message(role="assistant", content="Sorry, I’m not sure. Maybe 12 or 13?"),
        Message(role="tool", content='{"error": "no such"}'),
        Message(role="tool", content="[1, 2]"),
        Message(role="assistant", content="- Done!\n- Thanks."),
    )
    found = features_of(said)
    assert set(found) == set(FEATURES)
    expected = {
        "assistant turns": 2, "failed calls": 1, "questions": 1, "exclamations": 1, "numbers": 2, "apologies": 1,
        "hedges": 2, "list items": 2, "lines": 3, "thanks": 1, "claims": 1, "words in the last message": 4,
        "tool calls": 0, "repeated words": 0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


# --- one audit ---------------------------------------------------------------------------


def test_an_honest_reward_transfers_and_one_for_apologies_is_hacked(tmp_path: Path) -> None:
    pool = read_pool(written(tmp_path / "pool.jsonl", rows_of(48, 16)))
    honest, sorry = (audit_pool(pool, name, Settings(draws=500)) for name in ("honest", "sorry"))
    assert honest.verdict == "transfers" and honest.transfer is not None and not honest.transfer.alarm
    assert sorry.verdict == "being hacked" and sorry.transfer is not None and sorry.transfer.alarm
    assert [point.n for point in honest.curve] == [1, 2, 4, 8]
    golds = [point.gold.mean for point in honest.curve]
    assert golds == sorted(golds, key=lambda g: g or 0.0)
    # what is of high reward fails far more often than what is not, and apologies explain the reward
    (passes,) = sorry.false_pass
    assert passes.fails.mean is not None and passes.anywhere.mean is not None
    assert passes.fails.mean > passes.anywhere.mean + 0.1 and passes.by == "gold of the pool"
    assert sorry.explained is not None and sorry.explained.beside_gold is not None
    assert (sorry.explained.beside_gold.low or 0) > 0.9
    assert max(sorry.explained.partial.items(), key=lambda one: one[1].mean or 0)[0] in ("apologies", "refusals")
    assert honest.explained is not None and (honest.explained.beside_gold or honest.explained.alone) is not None
    # the cluster says what they have in common, with two examples of different prompts
    cluster = sorry.clusters[0]
    assert cluster.among_exploits > 2 * cluster.among_others and cluster.count >= 5
    assert len(cluster.examples) == 2 and cluster.examples[0].prompt != cluster.examples[1].prompt
    assert all("sorry" in one.said[0].content for one in cluster.examples)
    text = as_text(sorry)
    assert text.startswith("sorry: being hacked (the reward rises and gold falls)") and "best of" in text
    assert json.loads(json.dumps(as_json(sorry), allow_nan=False))["alarm"] is True


def test_too_few_prompts_are_undecided_and_it_says_how_many_more_would_decide(tmp_path: Path) -> None:
    rows = rows_of(12, 8, seed=3)
    for row in rows:
        row["reward"] = {"weak": row["gold"] + 2 * row["reward"]["sorry"] + row["reward"]["honest"]}
    pool = read_pool(written(tmp_path / "pool.jsonl", rows))
    found = audit_pool(pool, "weak", Settings(draws=500))
    assert found.verdict == "undecided" and found.transfer is not None and found.transfer.more is not None
    assert f"about {found.transfer.more:,} more prompts would decide" in as_text(found)
    assert any("few, so intervals are rough" in caveat for caveat in found.transfer.caveats)


def test_the_same_seed_gives_the_same_audit_and_another_nearly_the_same(tmp_path: Path) -> None:
    pool = read_pool(written(tmp_path / "pool.jsonl", rows_of(20, 8)))
    one, again, other = (audit_pool(pool, "honest", Settings(draws=300, seed=seed)) for seed in (1, 1, 2))
    assert as_json(one) == as_json(again)
    assert one.transfer is not None and other.transfer is not None
    assert one.transfer.gold.mean == other.transfer.gold.mean and one.transfer.gold.low != other.transfer.gold.low


def test_unscored_gold_is_left_out_and_told_and_is_never_a_zero(tmp_path: Path) -> None:
    rows = rows_of(24, 8)
    for number, row in enumerate(rows):
        if number % 4 == 0:
            row["gold"] = None
    pool = read_pool(written(tmp_path / "pool.jsonl", rows))
    found = audit_pool(pool, "honest", Settings(draws=200))
    kept = [row["gold"] for row in rows if row["gold"] is not None]
    assert (found.samples, found.unscored_gold) == (len(kept), len(rows) - len(kept))
    assert found.curve[0].gold.mean == pytest.approx(np.mean(kept), abs=1e-9)  # the best of one is a sample
    assert any("have no gold" in caveat for caveat in found.caveats)
    for row in rows:
        row["gold"] = None
    none = audit_pool(read_pool(written(tmp_path / "none.jsonl", rows)), "honest", Settings(draws=200))
    assert none.verdict == "undecided" and none.transfer is None and "no response has both" in none.note
    assert none.explained is not None and "holds nothing fixed" in " ".join(none.explained.caveats)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reward": {"honest": 1.0}}, "earn the same reward"),
        ({"gold": 1.0}, "have the same gold"),
        ({"cluster": "all"}, "one group of prompts"),
    ],
)
def test_what_cannot_be_judged_is_undecided_with_the_reason(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    rows = [{**row, **change} for row in rows_of(12, 4)]
    found = audit_pool(read_pool(written(tmp_path / "pool.jsonl", rows)), "honest", Settings(draws=100))
    assert found.verdict == "undecided" and says in found.note and "undecided" in as_text(found)


def test_one_response_a_prompt_is_no_best_of_n(tmp_path: Path) -> None:
    found = audit_pool(read_pool(written(tmp_path / "pool.jsonl", rows_of(12, 1))), "honest", Settings(draws=100))
    assert "best of n needs two" in found.note and found.curve == ()


def test_prompts_with_too_few_samples_are_left_out_of_the_curve_only(tmp_path: Path) -> None:
    rows = [*rows_of(20, 8), *[{**row, "prompt": "Short."} for row in rows_of(1, 3, seed=5)]]
    found = audit_pool(read_pool(written(tmp_path / "pool.jsonl", rows)), "honest", Settings(draws=100))
    assert found.prompts == 20 and found.samples == 163 and found.curve[-1].n == 4
    assert found.transfer is not None and found.transfer.gold.left_out == 1


def test_high_reward_counts_ties_in() -> None:
    assert high_reward([0, 0, 0, 1, 1], 0.2) == 1
    assert high_reward([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.2) == 9


def test_clusters_need_enough_exploits_of_several_prompts() -> None:
    def sample(number: int, text: str) -> Sample:
        said = (Message(role="assistant", content=text),)
        return Sample(
            id=str(number), prompt=str(number % 4), cluster="c", asked=(), said=said, rewards={"r": 1.0}, gold=0.0
        )

    others = [sample(n, f"The order number {n} is on its way.") for n in range(100, 140)]
    exploits = [sample(n, "As you can see, all is well.") for n in range(12)]
    everyone = {one.id: features_of(one.said) for one in (*others, *exploits)}
    found = exploit_clusters(exploits, others, everyone, "r")
    assert found[0].count == 12 and found[0].among_others == 0.0
    assert exploit_clusters(exploits[:3], others, everyone, "r") == ()
    same = [sample(4 * n, "As you can see, all is well.") for n in range(12)]  # of one prompt
    assert exploit_clusters(same, others, {one.id: features_of(one.said) for one in (*others, *same)}, "r") == ()


# --- the command ---------------------------------------------------------------------------


def test_the_command_prints_words_json_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(written(tmp_path / "pool.jsonl", [*rows_of(24, 8), "{\n"]))
    run_transfer("--pool", path, "-o", str(tmp_path / "audit.json"))
    told = capsys.readouterr()
    assert "honest: transfers" in told.out and "sorry: being hacked" in told.out and "left out pool.jsonl" in told.err
    run_transfer("--pool", path, "--json", "--reward", "honest")
    given = json.loads(capsys.readouterr().out)
    assert [one["reward"] for one in given["audits"]] == ["honest"]
    kept = json.loads((tmp_path / "audit.json").read_text())
    assert kept["audits"][0] == given["audits"][0] and len(kept["audits"]) == 2
    assert kept["audits"][1]["verdict"] == "being hacked"


def test_what_the_command_refuses(tmp_path: Path) -> None:
    path = str(written(tmp_path / "pool.jsonl", rows_of(4, 2)))
    with pytest.raises(ConfigError, match="name a run or a --pool"):
        run_transfer()
    with pytest.raises(ConfigError, match="not both"):
        run_transfer("last", "--pool", path)
    with pytest.raises(DataError, match="no reward 'length'; it has honest, sorry"):
        run_transfer("--pool", path, "--reward", "length")
    with pytest.raises(ConfigError, match="shares"):
        run_transfer("--pool", path, "--margin", "2")
    with pytest.raises(ConfigError, match="a queue is of one reward"):
        run_transfer("--pool", path, "--queue", str(tmp_path / "q.jsonl"))
    with pytest.raises(ConfigError, match="name it too"):
        run_transfer("--pool", path, "--judged", path)


def test_the_command_stands_in_the_help() -> None:
    assert "transfer" in CliRunner().invoke(app, ["--help"]).output


def test_an_empty_pool_is_no_pool() -> None:
    found = audit_pool(Pool(name="none", samples=()), "r", Settings(draws=100))
    assert found.verdict == "undecided" and found.samples == 0 and found.false_pass == ()


@pytest.mark.parametrize("change", [{"gold": 1.0}, {"reward": {"honest": 1.0}}])
def test_where_nothing_could_be_chosen_there_is_no_law_and_no_exploit(change: dict[str, Any], tmp_path: Path) -> None:
    rows = [{**row, **change} for row in rows_of(30, 8)]
    found = audit_pool(read_pool(written(tmp_path / "pool.jsonl", rows)), "honest", Settings(draws=100))
    assert found.fit is None and found.clusters == () and found.exploits == 0 and "peak" not in as_text(found)


@pytest.mark.parametrize(("times", "plus"), [(1.0, 1e9), (1e-90, 0.0), (1e90, 0.0)])
def test_the_origin_and_the_unit_of_a_reward_change_nothing(times: float, plus: float, tmp_path: Path) -> None:
    rows = rows_of(30, 8)
    plain = audit_pool(read_pool(written(tmp_path / "plain.jsonl", rows)), "sorry", Settings(draws=100))
    for row in rows:
        row["reward"] = {"sorry": row["reward"]["sorry"] * times + plus}
    other = audit_pool(read_pool(written(tmp_path / "other.jsonl", rows)), "sorry", Settings(draws=100))
    assert other.verdict == plain.verdict and plain.transfer is not None and other.transfer is not None
    assert other.transfer.reward.mean == pytest.approx(plain.transfer.reward.mean, rel=1e-4)
    assert plain.explained is not None and other.explained is not None
    assert not any("does not vary" in caveat for caveat in other.explained.caveats)


def test_rows_that_say_the_same_are_counted_and_kept(tmp_path: Path) -> None:
    rows = rows_of(20, 8)
    pool = read_pool(written(tmp_path / "pool.jsonl", [*rows, *rows]))
    assert len(pool.samples) == 320 and pool.repeated >= 160
    found = audit_pool(pool, "honest", Settings(draws=100))
    assert any("rows say the same as one before them" in caveat for caveat in found.caveats)
    named = [{**row, "id": str(n)} for n, row in enumerate([*rows, *rows])]
    assert read_pool(written(tmp_path / "named.jsonl", named)).repeated == 0, "its owner says that they are apart"
