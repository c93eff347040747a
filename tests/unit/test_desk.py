"""The desk: gold passes everywhere, lazy conduct nowhere, and held-out means held out."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import pytest

from metier.base.errors import DataError
from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.feedback.verifiers.registry import get_verifier
from metier.models.hub import load_tokenizer
from metier.models.renderer import get_renderer
from metier.records.types import EnvironmentSpec, Message, Task, ToolCall, from_plain, to_plain
from metier.tasks.desk import phrasing as say
from metier.tasks.desk.desks import TRAIN_DESKS, UNSEEN_DESKS, load
from metier.tasks.desk.environment import DeskEnvironment
from metier.tasks.desk.family import KINDS, DeskFamily
from metier.tasks.protocol import EnvironmentFailure
from metier.tasks.registry import get_family

FAMILY = DeskFamily()
SPLITS = tuple(FAMILY.splits())
TASKS = {split: FAMILY.tasks(split, 210, 3) for split in SPLITS}


def play(task: Task, moves: Sequence[ToolCall | str]) -> Verdict:
    """The verdict on an assistant that makes these moves whatever it reads."""
    environment = FAMILY.environment(task)
    messages = list(task.messages)
    for move in moves:
        if isinstance(move, str):
            messages.append(Message(role="assistant", content=move))
            reply = environment.reply(move)
            if reply is not None:
                messages.append(Message(role="user", content=reply))
        else:
            messages.append(Message(role="assistant", tool_calls=(move,)))
            messages.append(Message(role="tool", content=environment.call(move), tool_call_id=move.id, name=move.name))
    spec = task.verifiers[0]
    attempt = Attempt(messages=tuple(messages), final_state=environment.state())
    return get_verifier(spec.name).verify(task, attempt, spec.params)


def gold(task: Task) -> list[ToolCall | str]:
    return [call(s["call"], **s["arguments"]) if "call" in s else s["say"] for s in task.answer["steps"]]


def call(name: str, /, **arguments: str) -> ToolCall:
    return ToolCall(name=name, arguments=json.dumps(arguments), id="call_1")


def table(task: Task) -> dict[str, dict[str, str]]:
    assert task.environment is not None
    (records,) = task.environment.state["db"].values()
    return dict(records)


def everything_said(task: Task) -> str:
    values = [value for number, record in table(task).items() for value in (number, *record.values())]
    statuses = [v for f in load(task.meta["desk"]).fields for v in getattr(f.values, "train", ())]
    return " ".join([task.messages[0].content, *values, *statuses])


def looked_up(task: Task) -> list[ToolCall]:
    """The oracle's own look-ups."""
    return [m for m in gold(task) if isinstance(m, ToolCall) and m.name.startswith(("find_", "search_"))]


def everything_called(task: Task) -> list[ToolCall | str]:
    calls: list[ToolCall | str] = []
    for tool in task.tools:
        for number, record in table(task).items():
            names = list(tool.parameters["properties"])
            given = {name: record["name"] if name == "name" else number for name in names}
            calls.append(call(tool.name, **given))
    return [*calls, "All done."]


def pool_of(task: Task) -> str:
    return {"demo": "demo", "train": "rl"}.get(task.split, "heldout")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("split", SPLITS)
def test_gold_passes(split: str, seed: int) -> None:
    for task in FAMILY.tasks(split, 200, seed):
        verdict = play(task, gold(task))
        assert verdict.score == 1.0, (task.meta, task.messages[1].content, verdict)
        assert set(verdict.parts.values()) == {1.0}


@pytest.mark.parametrize("split", SPLITS)
def test_the_demonstration_is_the_gold_conversation(split: str) -> None:
    for task in TASKS[split][:60]:
        messages = FAMILY.demonstrate(task)
        assert messages[:2] == task.messages
        assert messages[-1].role == "assistant" and messages[-1].content
        for said in (m for m in messages if m.role == "assistant"):
            assert said.content or said.tool_calls
            if "allowed, so " in said.content:  # it weighs the rule before it acts
                act = said.tool_calls[0].name
                allowed = ": not allowed, so " if act == "decline" else ": allowed, so "
                assert said.content.endswith(f"{allowed}{act}.")
        called = [m for m in messages if m.tool_calls]
        assert [m.content.startswith("Asked: ") for m in called] == [n == 0 for n in range(len(called))]
        if called:  # what is wanted is named once, by the names of tools and of fields
            wanted = called[0].content.removeprefix("Asked: ").partition(".")[0].split(", then ")
            fields = {key for record in table(task).values() for key in record}
            assert set(wanted) <= {tool.name for tool in task.tools} | fields
        assert not any('"error"' in m.content for m in messages if m.role == "tool")
        ids = [c.id for m in messages for c in m.tool_calls]
        assert ids == [f"call_{i + 1}" for i in range(len(ids))]


LAZY: dict[str, Callable[[Task], Sequence[ToolCall | str]]] = {
    "nothing": lambda task: [],
    "a word": lambda task: ["Hello, how can I help?"],
    "says everything": lambda task: [everything_said(task)],
    "looks up and says everything": lambda task: (
        [*[m for m in gold(task) if not isinstance(m, str)][:1], everything_said(task)]
        if task.kind in ("lookup", "answer")
        else [everything_said(task)]
    ),
    "calls everything": everything_called,
}


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize("split", SPLITS)
def test_lazy_conduct_always_fails(split: str, name: str) -> None:
    for task in TASKS[split]:
        verdict = play(task, LAZY[name](task))
        assert verdict.score == 0.0, (task.kind, task.messages[1].content, verdict)
        assert verdict.reason


@pytest.mark.parametrize("split", SPLITS)
def test_doing_nothing_earns_no_partial_credit(split: str) -> None:
    assert all(not any(play(task, []).parts.values()) for task in TASKS[split])


def always(tool: str) -> Callable[[Task], list[ToolCall | str]]:
    def moves(task: Task) -> list[ToolCall | str]:
        return [*looked_up(task), call(tool, reason="no"), "Sorry."]

    return moves


def comply(task: Task) -> list[ToolCall | str]:
    """Does what is asked whatever the policy says."""
    moves = gold(task)
    if task.meta.get("side") != "forbidden":
        return moves
    act = next(a for a in load(task.meta["desk"]).acts if task.meta["intent"].endswith(a.name))
    asked = task.messages[1].content
    number = next((n for n, r in table(task).items() if re.search(rf"\b{n}\b", asked) or r["name"] in asked), "")
    value = {act.param: (re.findall(r"\d+", asked.replace(number, "")) or ["1"])[-1]} if act.param else {}
    desk = load(task.meta["desk"])
    return [*looked_up(task), call(act.name, **{desk.key: number, **value}), "Done."]


@pytest.mark.parametrize("split", ["demo", "train", "heldout", "changed_policy", "unseen_desk"])
def test_no_fixed_answer_wins_both_twins(split: str) -> None:
    for conduct in (always("decline"), always("hand_over"), comply):
        scores: dict[str, list[float | None]] = defaultdict(list)
        for task in TASKS[split]:
            verdict = play(task, conduct(task))
            if task.kind == "decline":
                scores[task.meta["pair"]].append(verdict.score)
        assert scores and all(len(pair) == 2 and sum(filter(None, pair)) <= 1 for pair in scores.values())
    declined = [play(t, always("decline")(t)).score for t in TASKS[split] if t.meta.get("side") == "forbidden"]
    assert set(declined) == {1.0}  # so the test above can fail


@pytest.mark.parametrize("split", SPLITS)
def test_declining_or_handing_over_wins_only_its_own_kind(split: str) -> None:
    for task in TASKS[split]:
        if task.kind != "decline":
            assert play(task, always("decline")(task)).score == 0.0
        if task.kind != "handover":
            assert play(task, always("hand_over")(task)).score == 0.0


@pytest.mark.parametrize("split", ["demo", "heldout", "unseen_tool", "unseen_desk"])
def test_guessing_what_is_missing_fails_even_when_the_guess_is_right(split: str) -> None:
    asks = [task for task in TASKS[split] if task.kind == "ask"]
    assert asks
    for task in asks:
        guessed = [m for m in gold(task) if not isinstance(m, str)]
        for closing in (str(gold(task)[-1]), "Done. Is that the number and the day you meant?"):
            verdict = play(task, [*guessed, closing])
            assert verdict.score == 0.0, (task.messages[1].content, closing)


def test_twins_stand_together_and_differ_in_the_right_conduct() -> None:
    for split in ("demo", "train", "heldout", "changed_policy", "unseen_desk"):
        tasks = TASKS[split]
        places: dict[str, list[int]] = defaultdict(list)
        for place, task in enumerate(tasks):
            if "pair" in task.meta:
                places[task.meta["pair"]].append(place)
        assert places
        for first, second in places.values():
            assert second == first + 1
            one, other = tasks[first], tasks[second]
            assert {one.meta["side"], other.meta["side"]} == {"forbidden", "allowed"}
            assert one.meta["intent"] == other.meta["intent"] and one.meta["phrasing"] == other.meta["phrasing"]
            assert one.messages[0] == other.messages[0] or one.meta["variant"] == other.meta["variant"]


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_are_distinct_repeatable_and_stable_under_a_longer_list(split: str) -> None:
    tasks = TASKS[split]
    assert len({task.id for task in tasks}) == len(tasks)
    assert [t.id for t in FAMILY.tasks(split, 210, 3)] == [t.id for t in tasks]
    assert {t.id for t in FAMILY.tasks(split, 210, 4)}.isdisjoint(t.id for t in tasks)
    for n in range(0, 34, 3):
        fewer = FAMILY.tasks(split, n, 3)
        assert len(fewer) == n
        assert [t.id for t in fewer[: n - 1]] == [t.id for t in tasks[: max(n - 1, 0)]]
        pairs = Counter(t.meta["pair"] for t in fewer if "pair" in t.meta)
        assert n == 1 or set(pairs.values()) <= {2}


@pytest.mark.parametrize("split", ["demo", "train", "heldout", "unseen_desk"])
def test_kinds_are_balanced(split: str) -> None:
    counts = Counter(task.meta.get("side", task.kind) for task in TASKS[split][:208])  # 13 whole blocks
    assert counts == dict.fromkeys([*(kind for kind in KINDS if kind != "decline"), "forbidden", "allowed"], 26)


def test_other_rungs_turn_on_what_is_new() -> None:
    for task in TASKS["unseen_tool"]:
        extra = load(task.meta["desk"]).extra
        assert extra is not None
        assert any(step.get("call") == extra.name for step in task.answer["steps"])
    seen = {tool.name for split in ("demo", "train") for task in TASKS[split] for tool in task.tools}
    assert not seen & {desk.extra.name for desk in map(load, TRAIN_DESKS) if desk.extra is not None}
    assert {task.meta["desk"] for task in TASKS["unseen_desk"]} == set(UNSEEN_DESKS)
    assert {task.kind for task in TASKS["changed_policy"]} == {"answer", "decline"}
    for desk in map(load, TRAIN_DESKS):
        for changed in desk.changed:
            for fact in desk.facts:
                assert all(changed.values[fact.key] != known.values[fact.key] for known in desk.variants)


def test_changed_policy_turns_the_right_conduct_around() -> None:
    """In every pair at least one twin would be treated the other way by all policies of training."""
    turned: dict[str, bool] = defaultdict(bool)
    for task in TASKS["changed_policy"]:
        if task.kind != "decline":
            continue
        desk = load(task.meta["desk"])
        act = next(a for a in desk.acts if task.meta["intent"].endswith(f".{a.name}"))
        assert act.rule is not None
        asked = task.messages[1].content
        hit = [r for n, r in table(task).items() if re.search(rf"\b{n}\b", asked) or r["name"] in asked]
        was = hit[0].get(act.rule.field) or re.findall(r"\d+", re.sub(r"\b\d{4}\b", "", asked))[-1]
        allowed = task.meta["side"] == "allowed"
        turned[task.meta["pair"]] |= all(act.rule.allows(was, v.values) != allowed for v in desk.variants)
    assert turned and all(turned.values())


def test_prefixes_are_few_and_short() -> None:
    most = {"demo": 6, "train": 6, "heldout": 6, "unseen_tool": 4, "changed_policy": 4, "unseen_desk": 10}
    for split, limit in most.items():
        assert len({prefix(task) for task in TASKS[split]}) <= limit
    assert {prefix(task) for task in TASKS["train"]} == {prefix(task) for task in TASKS["demo"]}


def prefix(task: Task) -> str:
    lines = [f"- {t.name}({', '.join(t.parameters['properties'])}): {t.description}" for t in task.tools]
    return "\n".join([task.messages[0].content, *lines])


def test_system_and_tools_stay_under_350_tokens() -> None:
    renderer = get_renderer(load_tokenizer("smollm2"))
    ones = {prefix(task): task for tasks in TASKS.values() for task in tasks}
    sizes = [renderer.render(task.messages, task.tools, prompt=True).prefix for task in ones.values()]
    assert 200 < max(sizes) < 350, max(sizes)


def test_tool_results_are_short() -> None:
    for task in TASKS["heldout"]:
        for message in FAMILY.demonstrate(task):
            assert message.role != "tool" or len(message.content) < 160


# --- held out means held out ---------------------------------------------------------


def lists() -> dict[str, Sequence[str]]:
    out: dict[str, Sequence[str]] = {
        name: getattr(say, name) for name in say.__all__ if name.isupper() and name != "HANDOVERS"
    }
    out |= {f"hand.{reason}": lines for reason, lines in say.HANDOVERS.items()}
    for name in TRAIN_DESKS:
        desk = load(name)
        for act in (*desk.acts, *([desk.extra] if desk.extra else [])):
            out |= {f"{name}.{act.name}.parts": act.parts, f"{name}.{act.name}.asks": act.asks}
        for field in desk.fields:
            out |= {f"{name}.{field.name}.parts": field.parts, f"{name}.{field.name}.asks": field.asks}
        out |= {f"{name}.fact.{fact.key}": fact.asks for fact in desk.facts}
        out |= {f"{name}.hand": desk.handovers, f"{name}.bare": desk.bare}
    return out


def test_pools_share_no_phrasing() -> None:
    plain: dict[str, dict[str, str]] = defaultdict(dict)
    for name, lines in lists().items():
        for place, line in enumerate(lines):
            text = re.sub(r"[^\w{}]+", " ", line.casefold()).strip()
            pool = say.pool_of(place)
            where = name.rsplit(".", 1)[0]
            assert plain[where].setdefault(text, pool) == pool, f"{name}: {line!r} is in two pools"


def test_every_intent_has_many_phrasings_in_every_pool() -> None:
    for desk in map(load, TRAIN_DESKS):
        owners = [(a.parts, a.asks, say.DO_FRAMES) for a in desk.acts]
        owners += [(f.parts, f.asks, say.ASK_FRAMES) for f in desk.fields if f.asks]
        for pool in ("demo", "rl", "heldout"):
            for parts, asks, frames in owners:
                deal = [len(say.dealt(lines, pool)) for lines in (parts, asks, frames)]
                assert deal[0] * deal[2] + deal[1] >= (40 if pool == "rl" else 16)


@pytest.mark.parametrize("split", ["demo", "train", "heldout"])
def test_a_message_takes_its_words_from_one_pool(split: str) -> None:
    """Each place in a phrasing's name is of the split's pool."""
    for task in TASKS[split]:
        for place in re.findall(r"\.[apf]?(\d+)|f(\d+)", task.meta["phrasing"]):
            assert say.pool_of(int(place[0] or place[1])) == pool_of(task), task.meta["phrasing"]


def test_heldout_names_items_and_ids_are_new() -> None:
    def of(split: str) -> tuple[set[str], set[str], set[str]]:
        names: set[str] = set()
        items: set[str] = set()
        ids: set[str] = set()
        for task in TASKS[split]:
            desk = load(task.meta["desk"])
            closed = getattr(desk.field(desk.item).values, "held", None) == ()
            for number, record in table(task).items():
                ids.add(number)
                names.update(record["name"].split())
                items.update(() if closed else [record[desk.item]])
        return names, items, ids

    known = [a | b for a, b in zip(of("demo"), of("train"), strict=True)]
    for split in ("heldout", "unseen_tool", "changed_policy"):
        for seen, new in zip(known, of(split), strict=True):
            assert new and not seen & new
    said = {task.messages[1].content for split in ("demo", "train") for task in TASKS[split]}
    assert not said & {task.messages[1].content for task in TASKS["heldout"]}


def test_templates_of_acts_with_a_value_can_withhold_it() -> None:
    for desk in map(load, (*TRAIN_DESKS, *UNSEEN_DESKS)):
        for act in (*desk.acts, *([desk.extra] if desk.extra else [])):
            for line in (*act.parts, *act.asks):
                assert "{ref}" in line, line
                if act.param:
                    assert "{value}" in line, line
                    assert "{value}" not in re.sub(r"\[[^]]*\]", "", line), line
                else:
                    assert "{value}" not in line and "[" not in line, line


@pytest.mark.parametrize("split", SPLITS)
def test_messages_read_well(split: str) -> None:
    for task in TASKS[split]:
        text = task.messages[1].content
        assert not re.search(r"[{}\[\]\x00-\x08]|  |,[.?!]|\bNone\b", text), text
        assert len(text.split()) + 2 >= 3 and len(text) < 240, text


# --- the environment ------------------------------------------------------------------


def test_the_environment_is_rebuilt_from_its_json_alone() -> None:
    for task in TASKS["heldout"][:20]:
        spec = from_plain(EnvironmentSpec, json.loads(json.dumps(to_plain(task.environment))))
        one, other = DeskEnvironment(spec.state), FAMILY.environment(task)
        for move in gold(task):
            if isinstance(move, str):
                assert one.reply(move) == other.reply(move)
            else:
                assert one.call(move) == other.call(move)
        assert one.state() == other.state()


def test_what_the_policy_gets_wrong_is_named() -> None:
    task = next(t for t in TASKS["demo"] if t.meta["desk"] == "shop")
    environment = FAMILY.environment(task)
    before = environment.state()

    def error(name: str, arguments: str) -> str:
        return str(json.loads(environment.call(ToolCall(name=name, arguments=arguments)))["error"])

    assert "no tool fly" in error("fly", "{}")
    assert "not a JSON object" in error("find_order", "{order")
    assert "missing argument order_id" in error("find_order", "{}")
    assert "unknown argument colour" in error("find_order", '{"order_id": "1", "colour": "red"}')
    assert "must be text" in error("find_order", '{"order_id": ["1"]}')
    assert "no order 1" in error("cancel_order", '{"order_id": "1"}')
    assert "no order for" in error("search_orders", '{"name": "Nobody"}')
    assert environment.state() == before


def test_the_user_supplies_what_is_missing_once_and_nods_twice() -> None:
    ask = next(t for t in TASKS["demo"] if t.kind == "ask")
    assert ask.environment is not None
    environment = FAMILY.environment(ask)
    assert environment.reply("Done.") is None
    assert environment.reply("Which one?") == ask.environment.state["script"]["reply"]
    assert environment.state()["supplied"] is True
    nods = [environment.reply("Shall I go ahead?") for _ in range(3)]
    assert nods[0] and nods[1] and nods[2] is None
    assert FAMILY.environment(ask).reply("Please tell me the number or which one, thanks") is not None


def test_bad_requests_are_refused_in_a_sentence() -> None:
    with pytest.raises(DataError, match="no split 'test'"):
        FAMILY.tasks("test", 1, 0)
    with pytest.raises(DataError, match="nearest is 'desk'"):
        get_family("desc")
    assert get_family("desk").name == "desk"
    with pytest.raises(EnvironmentFailure, match="not whole"):
        DeskEnvironment({"noun": "order"})
