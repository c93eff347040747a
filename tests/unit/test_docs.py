"""The documentation of the commands is today's."""

from __future__ import annotations

import re
from pathlib import Path

from metier.cli import reference
from metier.cli.docs import commands, render

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == render(), "docs/cli.md is stale; run: make docs"


def test_the_page_of_settings_is_what_the_settings_say() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == reference.render(), "docs/settings.md is stale; run: make docs"
    assert "| `lr` | number > 0 | `3e-05` |" in page and "`temperature`" in page and "list of text" in page


def test_every_command_and_option_says_what_it_is_for() -> None:
    found = dict(commands())
    assert {"metier run", "metier report", "metier runs list", "metier runs show", "metier runs why"} <= set(found)
    for name, command in found.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name}: {parameter.name}"


def test_every_command_that_prints_also_prints_json() -> None:
    for name, command in commands():
        if name in ("metier serve", "metier chat"):  # they answer others and hold a conversation
            continue
        assert any("--json" in parameter.opts for parameter in command.params), name


def test_the_documents_name_only_commands_and_targets_that_exist() -> None:
    known = {name for name, _ in commands()}
    groups = {name.rsplit(" ", 1)[0] for name in known}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for used in re.findall(r"^ {4}(metier [a-z].*)$|`(metier [a-z][^`]*)`", text, flags=re.MULTILINE):
            words = "".join(used).split()
            assert " ".join(words[:2]) in known | groups, f"{document.name}: {' '.join(words)}"
            if " ".join(words[:2]) in groups - known and len(words) > 2:
                assert " ".join(words[:3]).rstrip(",") in known, f"{document.name}: {' '.join(words)}"
        for target in re.findall(r"^ {4}make ([a-z-]+)|`make ([a-z-]+)", text, flags=re.MULTILINE):
            assert "".join(target) in targets, f"{document.name}: make {''.join(target)}"


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
