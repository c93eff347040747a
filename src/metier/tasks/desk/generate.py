"""From a desk, a variant and a random stream to one task.

Each kind of work is one method of `Maker`, which draws the records, writes the user's
message, lays down what the oracle does (`Task.answer["steps"]`) and what the verifier
"conduct" must find. Nothing here reads or writes anything outside.

A right conduct is unique given policy and records: acts under a rule are asked for
only on records whose case is clear, and names and ids never repeat in one database.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from metier.records.types import EnvironmentSpec, Message, Task, Tool, VerifierSpec
from metier.tasks.desk import phrasing as say
from metier.tasks.desk.people import draw_name
from metier.tasks.desk.spec import Act, Desk, Fact, Field, Number, Pick, Rule, Variant, number_in, shown
from metier.tasks.facts import names_fact

__all__ = ["Maker", "system_text", "tools_of"]

VERSION = "1"
_CONDUCT = (
    "Find records by number or name; ask if a detail is missing. Decline what the policy forbids. Hand over complaints,"
    " injuries, legal threats, wishes for a person and anything else beyond your tools."
)
# The oracle puts one thing in one way only: wording that varies without a reason would
# have to be learned first and then not be relied upon.
_ASK_ID = "What is the {noun} number?"
_HANDED = "I've passed this on to a colleague, who will contact you."
_SORRY = "I'm sorry to hear that. A colleague will contact you soon."

Side = Literal["forbidden", "allowed"]
Step = dict[str, Any]
Record = dict[str, str]


def system_text(desk: Desk, variant: Variant) -> str:
    """The system message: the same bytes for every task of one desk and variant."""
    lines = "\n".join("- " + line.format(**variant.values) for line in desk.policy)
    return f"{desk.who}\nPolicy:\n{lines}\n{_CONDUCT}"


def tools_of(desk: Desk, *, extra: bool) -> tuple[Tool, ...]:
    """The tools, in the order shown; with the extra one where the split is about it."""
    acts = desk.acts + ((desk.extra,) if extra and desk.extra is not None else ())
    return (
        _tool(desk.find, f"Look up {_article(desk.noun)}.", desk.key),
        _tool(desk.search, f"Find {_article(desk.noun)} by customer.", "name"),
        *(_tool(act.name, act.description, desk.key, *((act.param,) if act.param else ())) for act in acts),
        _tool("decline", "Refuse a request.", "reason"),
        _tool("hand_over", "Pass to a colleague.", "reason"),
    )


def _tool(name: str, description: str, *params: str) -> Tool:
    schema = {"type": "object", "properties": {p: {"type": "string"} for p in params}, "required": list(params)}
    return Tool(name=name, description=description, parameters={**schema, "additionalProperties": False})


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _meaning(desk: Desk, *, extra: bool) -> dict[str, Any]:
    """What the environment does for each tool."""
    acts = desk.acts + ((desk.extra,) if extra and desk.extra is not None else ())
    out: dict[str, Any] = {
        desk.find: {"does": "find", "params": [desk.key]},
        desk.search: {"does": "search", "params": ["name"]},
        "decline": {"does": "log", "params": ["reason"], "as": "declined"},
        "hand_over": {"does": "log", "params": ["reason"], "as": "handed over"},
    }
    for act in acts:
        params = [desk.key, act.param] if act.param else [desk.key]
        out[act.name] = {"does": "change", "params": params, "sets": dict(act.sets)}
    return out


@dataclass(frozen=True, slots=True)
class _Core:
    """A chosen core phrasing, not yet filled."""

    template: str
    name: str  # which one: owner and positions


class Maker:
    """Makes tasks of one desk, variant and pool from one random stream."""

    def __init__(
        self, desk: Desk, variant: Variant, *, split: str, pool: say.Pool, held: bool, extra: bool, rng: random.Random
    ) -> None:
        self.desk, self.variant, self.split = desk, variant, split
        self.pool, self.held, self.extra, self.rng = pool, held, extra, rng
        self.db: dict[str, Record] = {}

    def make(self, kind: str) -> list[Task]:
        """One task of the kind, or for "decline" its two twins."""
        if kind == "decline":
            return self.decline()
        self.db = {}
        made: Task = getattr(self, kind)()
        return [made]

    # --- kinds of work ----------------------------------------------------------------

    def lookup(self) -> Task:
        """Look up a record and tell what was asked."""
        field = self.rng.choice([f for f in self.desk.fields if f.asks])
        number = self._record(self._needs(field))
        by = self._by()
        plain = field.name == self.desk.item
        core = self._core(f"look.{field.name}", field.parts, field.asks, say.ASK_FRAMES)
        steps = _asked([self._look(number, by), _tell(self._answer(field, number))], field.name)
        checks = {"required_calls": [self._looked(number)], **self._telling(field, number)}
        return self._task(
            "lookup", f"look.{field.name}", core.name, self._message(core, number, by, plain=plain), steps, checks
        )

    def act(self) -> Task:
        """One change, everything needed is in the message."""
        if self.extra:
            act = self._extra()
        else:
            free, ruled = self._split_acts()
            act = self.rng.choice(free if not ruled or self.rng.random() < 0.65 else ruled)
        number, value = self._acted(act)
        core = self._act_core(act)
        steps = _asked([*self._doing(act, number, value, "id"), _tell(self._done(act, number, value))], act.name)
        checks = self._state(act, number, value)
        return self._task("act", act.name, core.name, self._message(core, number, "id", value), steps, checks)

    def several(self) -> Task:
        """A search and then an act; two acts; or an act and something to tell."""
        shape = self.rng.choices(("named", "two", "told"), (0.4, 0.3, 0.3))[0]
        free, ruled = self._split_acts()
        if shape == "named":
            act = self._extra() if self.extra else self.rng.choice(self.desk.acts)
            number, value = self._acted(act)
            core = self._act_core(act)
            search = self._look(number, "name")
            steps = _asked([search, self._do(act, number, value), _tell(self._done(act, number, value))], act.name)
            checks = self._state(act, number, value)
            return self._task("several", act.name, core.name, self._message(core, number, "name", value), steps, checks)
        first = self._extra() if self.extra else self.rng.choice(free)
        number, value = self._acted(first)
        place, part = self._own(first.parts)
        if shape == "two":
            second = first if self.extra or not ruled or self.rng.random() < 0.5 else self.rng.choice(ruled)
            return self._two(first, (number, value), second, place, part)
        field = self.rng.choice([f for f in self.desk.fields if f.asks and f.name not in first.sets and f.only is None])
        by: Literal["id", "name"] = "id" if self.rng.random() < 0.5 else "name"
        ask_place, ask = self._own(field.parts)
        link_place, link = say.pick(self.rng, say.TOLD, self.pool)
        ref = self._ref(number, by, plain=field.name == self.desk.item)
        core_text = link.format(
            do=say.fill(part, {"ref": ref, "value": value}), ask=say.fill(ask, {"ref": say.open_text("it")})
        )
        look, do = self._look(number, by), self._do(first, number, value)
        steps = [look, do] if by == "name" else [do, look]  # in the order that the user asks for them
        steps.append(_tell(f"{self._done(first, number, value)} {self._answer(field, number)}"))
        steps = _asked(steps, first.name, field.name)
        checks = {
            **self._state(first, number, value),
            "required_calls": [self._looked(number)],
            **self._telling(field, number),
        }
        name = f"told.{link_place}:{first.name}.p{place}:{field.name}.p{ask_place}"
        text = say.compose(self.rng, self.pool, core_text, self._who(number) if by == "name" else "")
        return self._task("several", f"{first.name}+{field.name}", name, text, steps, checks)

    def ask(self) -> Task:
        """Something needed is missing; the user supplies it when asked."""
        choice = self.rng.random()
        if choice < 0.3 and not self.extra:
            field = self.rng.choice([f for f in self.desk.fields if f.asks])
            number = self._record(self._needs(field))
            core = self._core(f"look.{field.name}", field.parts, field.asks, say.ASK_FRAMES)
            text = say.compose(
                self.rng,
                self.pool,
                say.fill(core.template, {"ref": self._bare(number, plain=field.name == self.desk.item)}),
            )
            steps = [_tell(self._question(_ASK_ID)), self._look(number, "id"), _tell(self._answer(field, number))]
            steps = _asked(steps, field.name)
            checks = {
                "state": {"supplied": True},
                "required_calls": [self._looked(number)],
                **self._telling(field, number),
            }
            return self._task("ask", f"look.{field.name}", core.name, text, steps, checks, self._script("id", number))
        act = self._extra() if self.extra else self.rng.choice(self.desk.acts)
        number, value = self._acted(act)
        core = self._act_core(act)
        if act.param and choice > 0.6:
            by = self._by()
            text = self._message(core, number, by, withhold=True)
            steps = [_tell(self._question(act.question)), *self._doing(act, number, value, by)]
            script = self._script("value", number, value, act)
        else:
            slots = {"ref": self._bare(number), "value": value}
            text = say.compose(self.rng, self.pool, say.fill(core.template, slots))
            steps = [_tell(self._question(_ASK_ID)), *self._doing(act, number, value, "id")]
            script = self._script("id", number)
        steps = _asked([*steps, _tell(self._done(act, number, value))], act.name)
        state = {"supplied": True, **self._state(act, number, value)["state"]}
        return self._task("ask", act.name, core.name, text, steps, {"state": state}, script)

    def decline(self) -> list[Task]:
        """A request that the policy forbids, and its twin that it allows."""
        ruled = self._split_acts()[1]
        if self.split == "changed_policy":
            ruled = [a for a in ruled if any(self._flips(a, side) for side in ("forbidden", "allowed"))]
        act = self.rng.choice(ruled)
        core = self._act_core(act)
        pair = f"pair-{self.rng.getrandbits(48):012x}"
        sides: list[Side] = ["forbidden", "allowed"]
        self.rng.shuffle(sides)
        return [self._one_side(act, core, side, pair) for side in sides]

    def answer(self) -> Task:
        """A question that the policy answers."""
        fact = self.rng.choice(self.desk.facts)
        for _ in range(self.rng.randint(3, 5)):
            self._record({})
        place, text = self._own(fact.asks)
        told = fact.answer.format(**self.variant.values)
        checks = {
            "facts": [[spelling.format(**self.variant.values) for spelling in fact.accept]],
            "forbidden_facts": self._other_facts(fact),
            "max_calls": 0,
        }
        name = f"fact.{fact.key}.a{place}"
        message = say.compose(self.rng, self.pool, say.fill(text, {}))
        return self._task("answer", f"fact.{fact.key}", name, message, [_tell(told)], checks)

    def handover(self) -> Task:
        """Something for a person."""
        for _ in range(self.rng.randint(3, 5)):
            self._record({})
        reason = self.rng.choice([*say.HANDOVERS, *(["urgent matter"] if self.desk.handovers else [])])
        lines = say.HANDOVERS.get(reason, self.desk.handovers)
        place, text = (self._own if lines is self.desk.handovers else self._general)(lines)
        closing = _SORRY if reason in ("complaint", "injury", "urgent matter") else _HANDED
        call: Step = {"call": "hand_over", "arguments": {"reason": reason}}
        checks = {"state": {"log": ["handed over"]}, "required_calls": [{"name": "hand_over"}], "max_calls": 2}
        name = f"hand.{reason}.a{place}"
        who = say.fill(say.pick(self.rng, say.WHO, self.pool)[1], {"name": draw_name(self.rng, self.held)})
        message = say.compose(self.rng, self.pool, say.fill(text, {}), who if self.rng.random() < 0.15 else "")
        steps = _asked([call, _tell(closing)], "hand_over")
        return self._task("handover", f"hand.{reason}", name, message, steps, checks)

    # --- parts of them ----------------------------------------------------------------

    def _one_side(self, act: Act, core: _Core, side: Side, pair: str) -> Task:
        assert act.rule is not None
        self.db = {}
        number, value = self._acted(act, side)
        by = self._by()
        look = [] if act.rule.field == "value" and by == "id" else [self._look(number, by)]
        looked = [self._looked(number)] if act.rule.field != "value" else []
        meta = {"pair": pair, "side": side}
        if side == "allowed":
            steps = [*look, self._do(act, number, value), _tell(self._done(act, number, value))]
            checks = {**self._state(act, number, value), "required_calls": [*looked, {"name": act.name}]}
        else:
            what, was = self._weighed(act, number, value)
            slots = {"id": number, "was": was, "limit": shown(self.variant.values[act.rule.policy])}
            call: Step = {"call": "decline", "arguments": {"reason": what}, "note": f"{what}: not allowed, so decline."}
            steps = [*look, call, _tell(act.rule.refusal.format(**slots))]
            checks = {"state": {"log": ["declined"]}, "required_calls": [*looked, {"name": "decline"}]}
        text = self._message(core, number, by, value)
        return self._task("decline", act.name, core.name, text, _asked(steps, act.name), checks, meta=meta)

    def _two(self, first: Act, on: tuple[str, str], second: Act, place: int, part: str) -> Task:
        """Two acts on two records in one message."""
        number, value = on
        other, other_value = self._acted(second)
        second_place, second_part = self._own(second.parts)
        link_place, link = say.pick(self.rng, say.TWO, self.pool)
        text = link.format(
            first=say.fill(part, {"ref": self._ref(number, "id"), "value": value}),
            second=say.fill(second_part, {"ref": self._ref(other, "id"), "value": other_value}),
        )
        steps = [*self._doing(first, number, value, "id"), *self._doing(second, other, other_value, "id")]
        steps.append(_tell(f"{self._done(first, number, value)} {self._done(second, other, other_value)}"))
        steps = _asked(steps, first.name, second.name)
        state = {**self._state(first, number, value)["state"], **self._state(second, other, other_value)["state"]}
        name = f"two.{link_place}:{first.name}.p{place}:{second.name}.p{second_place}"
        message = say.compose(self.rng, self.pool, text)
        return self._task("several", f"{first.name}+{second.name}", name, message, steps, {"state": state})

    def _split_acts(self) -> tuple[list[Act], list[Act]]:
        acts = self.desk.acts
        return [a for a in acts if a.rule is None], [a for a in acts if a.rule is not None]

    def _extra(self) -> Act:
        assert self.desk.extra is not None
        return self.desk.extra

    def _by(self) -> Literal["id", "name"]:
        return "id" if self.rng.random() < 0.55 else "name"

    def _cases(self, rule: Rule, act: Act, side: Side) -> list[str]:
        """The values of what the rule looks at that fall on that side under this variant."""
        values = act.values if rule.field == "value" else self.desk.field(rule.field).values
        if isinstance(values, Number):
            pool = [values.form.format(n) for n in range(values.low, values.high + 1)]
        else:
            assert isinstance(values, Pick)
            pool = list(values.train)
        return [one for one in pool if rule.allows(one, self.variant.values) == (side == "allowed")]

    def _flips(self, act: Act, side: Side) -> list[str]:
        """Those cases that every variant of training decides the other way."""
        rule = act.rule
        assert rule is not None
        allowed = side == "allowed"
        known = self.desk.variants
        return [c for c in self._cases(rule, act, side) if all(rule.allows(c, v.values) != allowed for v in known)]

    def _acted(self, act: Act, side: Side = "allowed") -> tuple[str, str]:
        """A record that the act makes sense on, and the value asked for."""
        base = dict(act.base)
        value = ""
        if act.rule is not None:
            cases = self._cases(act.rule, act, side)
            if self.split == "changed_policy":
                cases = self._flips(act, side) or cases
            assert cases, f"{self.desk.name}/{self.variant.name}: no {side} case for {act.name}"
            case = self.rng.choice(cases)
            if act.rule.field == "value":
                value = case
            else:
                base[act.rule.field] = (case,)
        number = self._record(base)
        if act.values is not None and not value:
            held = {self.db[number].get(key) for key in act.sets}
            value = act.values.draw(self.rng, self.held)
            while value in held:
                value = act.values.draw(self.rng, self.held)
        return number, value

    def _needs(self, field: Field) -> dict[str, tuple[str, ...]]:
        return {} if field.only is None else {field.only[0]: field.only[1]}

    def _record(self, base: Mapping[str, tuple[str, ...]]) -> str:
        """Put a record in the database that fits `base`; the first call also brings others."""
        if not self.db:
            for _ in range(self.rng.randint(2, 4)):
                self._put({})
        return self._put(base)

    def _put(self, base: Mapping[str, tuple[str, ...]]) -> str:
        names = {record["name"] for record in self.db.values()}
        name = draw_name(self.rng, self.held)
        while name in names:
            name = draw_name(self.rng, self.held)
        record = {"name": name}
        for field in self.desk.fields:
            if field.only is not None and record.get(field.only[0]) not in field.only[1]:
                continue
            taken = {other.get(field.name) for other in self.db.values()}
            value = self.rng.choice(base[field.name]) if field.name in base else field.values.draw(self.rng, self.held)
            for _ in range(8):
                if value not in taken or field.name in base:
                    break
                value = field.values.draw(self.rng, self.held)
            record[field.name] = value
        number = str(self.rng.randint(1000, 9999))
        while number in self.db or (int(number) % 7 == 3) != self.held:
            number = str(self.rng.randint(1000, 9999))
        self.db[number] = record
        return number

    # --- what the oracle does ---------------------------------------------------------

    def _look(self, number: str, by: str) -> Step:
        if by == "id":
            return {"call": self.desk.find, "arguments": {self.desk.key: number}}
        return {"call": self.desk.search, "arguments": {"name": self.db[number]["name"]}}

    def _do(self, act: Act, number: str, value: str) -> Step:
        call: Step = {
            "call": act.name,
            "arguments": {self.desk.key: number, **({act.param: value} if act.param else {})},
        }
        if act.rule is None:
            return call
        return {**call, "note": f"{self._weighed(act, number, value)[0]}: allowed, so {act.name}."}

    def _weighed(self, act: Act, number: str, value: str) -> tuple[str, str]:
        """What the rule of an act looks at, beside what it must be; and the value alone."""
        rule = act.rule
        assert rule is not None
        what = act.param if rule.field == "value" else rule.field.replace("_", " ")
        was = value if rule.field == "value" else self.db[number][rule.field]
        return rule.weighed(what, was, self.variant.values), was

    def _doing(self, act: Act, number: str, value: str, by: str) -> list[Step]:
        """The act, after a look at the record where it needs one."""
        looks = by == "name" or (act.rule is not None and act.rule.field != "value")
        return [*([self._look(number, by)] if looks else []), self._do(act, number, value)]

    def _done(self, act: Act, number: str, value: str) -> str:
        return act.done.format(id=number, value=value, item=self.db[number][self.desk.item])

    def _answer(self, field: Field, number: str) -> str:
        return field.answer.format(id=number, found=self.db[number][field.name])

    def _question(self, line: str) -> str:
        return line.format(noun=self.desk.noun)

    # --- what the verifier wants ------------------------------------------------------

    def _looked(self, number: str) -> dict[str, Any]:
        by_id = {"name": self.desk.find, "arguments": {self.desk.key: number}}
        return {"any": [by_id, {"name": self.desk.search, "arguments": {"name": self.db[number]["name"]}}]}

    def _state(self, act: Act, number: str, value: str) -> dict[str, Any]:
        record = self.db[number]
        wanted = {}
        for key, how in act.sets.items():
            new = str(int(record.get(key, 0)) + 1) if how == "+1" else how.replace("{value}", value)
            wanted[f"db.{self.desk.plural}.{number}.{key}"] = new
        return {"state": wanted}

    def _telling(self, field: Field, number: str) -> dict[str, Any]:
        right = self.db[number][field.name]
        others = sorted({r[field.name] for r in self.db.values() if field.name in r} - {right})
        forbidden: list[Any] = list(others)
        if isinstance(field.values, Pick) and not field.values.held:
            # a closed set: "not shipped yet, it is packed" is fine; naming two wrong ones is not
            every = sorted({*field.values.train} - {right})
            forbidden = [list(two) for two in itertools.combinations(every, 2)]
        return {"facts": [_spellings(right)], "forbidden_facts": forbidden}

    def _other_facts(self, fact: Fact) -> list[str]:
        """Wrong values: of the same fact in other variants, and of facts in other lines of the policy."""
        known = self.desk.variants + self.desk.changed
        values = [f.format(**v.values) for v in known for f in fact.accept]
        near = {
            f.key
            for line in self.desk.policy
            if "{" + fact.key + "}" in line
            for f in self.desk.facts
            if "{" + f.key + "}" in line
        }
        values += [f.accept[0].format(**self.variant.values) for f in self.desk.facts if f.key not in near]
        told = " ".join([fact.answer, *(line for line in self.desk.policy if "{" + fact.key + "}" in line)])
        told = told.format(**self.variant.values)
        return sorted({value for value in values if not names_fact(told, [value])})

    # --- what the user says -----------------------------------------------------------

    def _core(self, owner: str, parts: Sequence[str], asks: Sequence[str], frames: Sequence[str]) -> _Core:
        if self.rng.random() < 0.5:
            place, text = self._own(asks)
            return _Core(text, f"{owner}.a{place}")
        place, part = self._own(parts)
        frame_place, frame = say.pick(self.rng, frames, self.pool)
        return _Core(frame.replace("{do}", part).replace("{q}", part),
                     f"{owner}.p{place}f{frame_place}")  # fmt: skip

    def _act_core(self, act: Act) -> _Core:
        return self._core(act.name, act.parts, act.asks, say.DO_FRAMES)

    def _own(self, lines: Sequence[str]) -> tuple[int, str]:
        """One of the desk's own lines, of the pool; any line where the whole desk is held out."""
        if self.desk.unseen:
            place = self.rng.randrange(len(lines))
            return place, lines[place]
        return say.pick(self.rng, lines, self.pool)

    def _general(self, lines: Sequence[str]) -> tuple[int, str]:
        return say.pick(self.rng, lines, self.pool)

    def _bare(self, number: str, *, plain: bool = False) -> str:
        """The record without its id; `plain` does not name its thing either."""
        line = self._own(self.desk.bare)[1]
        while plain and "{item}" in line:
            line = self._own(self.desk.bare)[1]
        return say.open_text(say.fill(line, {"item": self.db[number][self.desk.item]}))

    def _ref(self, number: str, by: str, *, plain: bool = False) -> str:
        if by == "name":
            return self._bare(number, plain=plain)
        line = say.pick(self.rng, say.REFS, self.pool)[1].replace("{noun}", self.desk.noun)
        return say.fill(line, {"id": number})

    def _who(self, number: str) -> str:
        return say.fill(say.pick(self.rng, say.WHO, self.pool)[1], {"name": self.db[number]["name"]})

    def _message(
        self, core: _Core, number: str, by: str, value: str = "", *, withhold: bool = False, plain: bool = False
    ) -> str:
        slots = {"ref": self._ref(number, by, plain=plain), "value": value}
        text = say.fill(core.template, slots, withhold=withhold)
        return say.compose(self.rng, self.pool, text, self._who(number) if by == "name" else "")

    def _script(self, missing: str, number: str, value: str = "", act: Act | None = None) -> dict[str, Any]:
        lines = say.ID_REPLIES if missing == "id" else say.VALUE_REPLIES
        reply = say.pick(self.rng, lines, self.pool)[1]
        text = reply.replace("{noun}", self.desk.noun).replace("{id}", number).replace("{value}", value)
        cues = ["number", "which " + self.desk.noun] if missing == "id" or act is None else [act.param, "which"]
        return {"missing": missing, "reply": text, "cues": cues}

    def _task(
        self, kind: str, intent: str, core: str, text: str, steps: Sequence[Step], checks: Mapping[str, Any],
        script: Mapping[str, Any] | None = None, meta: Mapping[str, Any] | None = None,
    ) -> Task:  # fmt: skip
        desk = self.desk
        calls = sum("call" in step for step in steps)
        if "forbidden_facts" in checks:  # what the user said, or the oracle would say, is never wrong
            fair = " | ".join([text, *(step[key] for step in steps for key in ("say", "note") if key in step)])
            kept = [f for f in checks["forbidden_facts"] if not all(names_fact(fair, [one]) for one in _listed(f))]
            checks = {**checks, "forbidden_facts": kept}
        numbers = sorted(self.db)
        self.rng.shuffle(numbers)
        nods = [say.pick(self.rng, say.NODS, self.pool)[1] for _ in range(2)]
        state = {
            "desk": desk.name, "variant": self.variant.name, "noun": desk.noun,
            "tools": _meaning(desk, extra=self.extra),
            "db": {desk.plural: {number: dict(self.db[number]) for number in numbers}},
            "log": [], "script": {**(script or {}), "nods": nods},
        }  # fmt: skip
        return Task(
            family="desk", kind=kind, split=self.split, source=f"desk/{VERSION}", licence="Apache-2.0",
            messages=(
                Message(role="system", content=system_text(desk, self.variant)),
                Message(role="user", content=text),
            ),
            tools=tools_of(desk, extra=self.extra), answer={"steps": list(steps)},
            verifiers=(VerifierSpec(name="conduct", params={"max_calls": calls + 2, **checks}),),
            environment=EnvironmentSpec(name="desk", version=VERSION, state=state),
            meta={"desk": desk.name, "variant": self.variant.name, "intent": f"{desk.name}.{intent}",
                  "phrasing": f"{desk.name}.{core}", **(meta or {})},
        )  # fmt: skip


def _tell(text: str) -> Step:
    return {"say": text}


def _asked(steps: Sequence[Step], *wanted: str) -> list[Step]:
    """The steps, with a note at the first call of what the user wants: tools and fields by name, in order.

    What was asked is settled once, right after it was said; after a tool's result it need only be read off.
    """
    first = next(n for n, step in enumerate(steps) if "call" in step)
    note = " ".join([f"Asked: {', then '.join(wanted)}.", *([steps[first]["note"]] if "note" in steps[first] else [])])
    return [*steps[:first], {**steps[first], "note": note}, *steps[first + 1 :]]


def _listed(fact: str | list[str]) -> list[str]:
    return [fact] if isinstance(fact, str) else fact


def _spellings(value: str) -> list[str]:
    """The value, and a date the other way round."""
    head, _, tail = value.partition(" ")
    return [value, f"{tail} {head}"] if head.isdigit() and tail.isalpha() and number_in(head) else [value]
