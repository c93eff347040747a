"""Audits of verifiers, and an audit of the audit: sabotaged verifiers are condemned, sound ones are not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from metier.cli import main
from metier.feedback.audit.audit import AUDITED, audit, built_in_cases
from metier.feedback.audit.cases import Case
from metier.feedback.audit.page import row, section

FOLDER = Path(__file__).parent


def audited(name: str, like: str) -> Any:
    from metier.base.plugins import import_file

    import_file(FOLDER / "sabotaged.py", "plugin")
    return audit(name, like=like, jobs=2)


@pytest.mark.parametrize("name", AUDITED)
def test_the_verifiers_that_ship_are_fit_and_as_the_docs_say(name: str, repository: Path) -> None:
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    done = audit(name, jobs=2)
    assert done.fit == "fit", [done.why, *done.wrong[:5]]
    assert done.counts(False)[0] == 0
    assert done.counts(True)[0] == 0
    assert sum(one.unscored for one in done.slices) == 0
    assert done.changed == 0
    told = (repository / "docs" / "audits.md").read_text()
    for text in (row(done), section(done)):
        assert text in told, "docs/audits.md is not what the audits find; look why, and run make docs"


SABOTAGED = {
    "accepts_any_box": "math",
    "finds_the_answer_anywhere": "math",
    "ignores_the_sign": "math",
    "takes_the_first_box": "math",
    "is_off_by_a_percent": "math",
    "tosses_a_coin": "math",
    "passes_all": "math",
    "fails_all": "math",
    "has_no_verdict": "math",
    "accepts_what_is_cut_off": "math",
    "trusts_stdout": "code",
    "trusts_the_exit_status": "code",
    "asks_the_object": "code",
    "runs_one_case": "code",
    "takes_true_for_one": "json_schema",
    "takes_the_first_value": "json_schema",
    "looks_at_names_alone": "tool_calls",
    "believes_the_response": "exact",
    "finds_infinity_near": "math",
    "takes_the_last_block": "code",
    "takes_the_last_of_two_names": "tool_calls",
    "reads_only_cited_sentences": "citations",
}


@pytest.mark.parametrize("name", list(SABOTAGED))
def test_sabotaged_verifiers_are_condemned(name: str) -> None:
    done = audited(name, SABOTAGED[name])
    assert done.fit == "unfit", (done.why, done.to_json()["false_pass"])
    assert done.why


def test_cases_are_enough_and_always_the_same() -> None:
    for name in AUDITED:
        if name == "reasoning_gym":
            pytest.importorskip("reasoning_gym")
        cases = built_in_cases(name)
        assert cases == built_in_cases(name)
        for passes in (True, False):
            assert sum(case.passes is passes for case in cases) >= 30, (name, passes)


def test_labelled_cases_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"verifier": {"name": "math", "answer": "7"}, "response": r"\boxed{7}", "passes": True, "kind": "mine"},
        {"verifier": {"name": "math", "answer": "7"}, "response": r"\boxed{8}", "passes": True, "kind": "mine"},
    ]
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["verify", "--audit", "math", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"kind": "mine", "must": "pass", "origin": "labelled", "n": 2, "wrong": 1, "unscored": 0} in told["slices"]
    assert told["verdict"] == "fit" and told["false_fail"]["wrong"] == 1
    assert told["false_pass"]["ci95"][0] == 0.0 and told["false_pass"]["n"] > 500
    assert [one["response"] for one in told["wrong"]] == [r"\boxed{8}"]
    file.write_text(json.dumps({**rows[0], "passes": "yes"}) + "\n")
    assert main(["verify", "--audit", "math", str(file)]) == 2
    assert 'line 1: "passes" is true or false' in capsys.readouterr().err


def test_few_cases_decide_nothing() -> None:
    case = Case(kind="mine", params={"model": ""}, response="a", passes=True)
    from metier.base.plugins import import_file

    import_file(FOLDER / "sabotaged.py", "plugin")
    few = audit("passes_all", [case])
    assert few.fit == "undecided"
    assert "only 0 cases that must fail have a verdict" in few.why


def test_an_audit_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--audit", "takes_the_first_box", "--plugin", str(FOLDER / "sabotaged.py")]) == 2
    assert "no cases ship" in capsys.readouterr().err
    assert main(["verify", "--audit", "exact"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"false pass  0\.00 % \(0\.00 to \d\.\d\d\), 0 of \d+", said)
    assert "verdict     fit to be a reward" in said
