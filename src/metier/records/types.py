"""The nouns: every record that Metier keeps, each with one meaning.

All records are frozen. Sequences are tuples; a mapping that a record holds is never
changed after construction. `to_plain` turns a record into JSON-ready values and
`from_plain` reads it back, refusing what does not fit. Numbers named *reward* or
*advantage* are plain floats derived from feedback and have no record.

Left out on purpose: how records are stored (`ledger.py`), and any behaviour beyond
checking themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from metier.base.errors import DataError
from metier.base.ids import content_hash

__all__ = [
    "Abstention",
    "Checkpoint",
    "Cost",
    "DatasetManifest",
    "EnvironmentSpec",
    "Episode",
    "Feedback",
    "FeedbackKind",
    "GateDecision",
    "Group",
    "Message",
    "Profile",
    "Run",
    "Sampling",
    "Source",
    "Span",
    "Stage",
    "Status",
    "Suite",
    "Task",
    "Tool",
    "ToolCall",
    "Trait",
    "VerifierSpec",
    "Weights",
    "from_plain",
    "to_plain",
]

Role = Literal["system", "user", "assistant", "tool"]
FeedbackKind = Literal["score", "preference", "ranking", "label", "correction", "demonstration", "forecast"]
SourceKind = Literal["verifier", "judge", "person", "execution", "tool", "production", "outcome"]
Status = Literal["scored", "unscored", "pending", "retracted"]
StopReason = Literal["stop", "length", "turns", "tokens", "calls", "time", "context", "error", "user"]
Boundary = Literal["policy", "environment", "sandbox", "engine", "judge", "network"]
DatasetKind = Literal["demonstrations", "pairs", "unpaired", "steps", "rl", "forecasts"]


# --- messages, in the OpenAI chat format -------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool, as an assistant message carries it."""

    name: str
    arguments: str  # JSON text, exactly as the policy wrote it
    id: str = ""  # ties the tool's answer to this call

    def parsed(self) -> dict[str, Any] | None:
        """The arguments as a mapping, or None where they are not a JSON object."""
        try:
            value = json.loads(self.arguments)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn: who speaks, what, and the tool calls made in it."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # on `tool` messages: the call that this answers
    name: str | None = None  # on `tool` messages: the tool's name

    def to_openai(self) -> dict[str, Any]:
        """The message as the OpenAI chat API spells it."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            out["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.tool_calls
            ]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            out["name"] = self.name
        return out

    @staticmethod
    def from_openai(raw: Mapping[str, Any]) -> Message:
        """Read a message in the OpenAI chat format.

        Raises `DataError` naming the field that is missing or wrong.
        """
        role = raw.get("role")
        if role not in ("system", "user", "assistant", "tool"):
            raise DataError(f"message role {role!r} is not one of system, user, assistant, tool")
        content = raw.get("content")
        if content is not None and not isinstance(content, str):
            raise DataError(f"message content must be text, not {type(content).__name__}; parts are not supported")
        calls = []
        given = raw.get("tool_calls") or ()
        if not isinstance(given, (list, tuple)):
            raise DataError(f"tool_calls must be a list, not {type(given).__name__}")
        for number, call in enumerate(given):
            function = call.get("function") if isinstance(call, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise DataError(
                    f"tool call {number} has no function name; expected {{'function': {{'name', 'arguments'}}}}"
                )
            arguments = function.get("arguments", "{}")
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            calls.append(ToolCall(name=function["name"], arguments=arguments, id=str(call.get("id") or "")))
        return Message(
            role=role,
            content=content or "",
            tool_calls=tuple(calls),
            tool_call_id=None if raw.get("tool_call_id") is None else str(raw["tool_call_id"]),
            name=None if raw.get("name") is None else str(raw["name"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the policy may call: name, what it does, JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON schema of type object

    def to_openai(self) -> dict[str, Any]:
        """The tool as the OpenAI chat API spells it."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": dict(self.parameters)},
        }

    @staticmethod
    def from_openai(raw: Mapping[str, Any]) -> Tool:
        """Read a tool in the OpenAI chat format, or its bare function. Raises `DataError` where it has no name."""
        function = raw.get("function", raw) if isinstance(raw, Mapping) else {}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError("a tool has no name; expected the OpenAI form {'type', 'function'}")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise DataError(f"parameters of tool {function['name']!r} must be a JSON schema, not {parameters!r:.60}")
        return Tool(name=function["name"], description=str(function.get("description") or ""), parameters=parameters)


# --- tasks ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierSpec:
    """A verifier that applies to a task, by registered name, with its parameters."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What a task acts on when it has state: which one, which version, in what state it starts."""

    name: str
    version: str
    state: Mapping[str, Any] = field(default_factory=dict)  # JSON; includes the simulated user's script


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked. Two tasks that ask the same thing have the same `id`, whatever their split."""

    family: str  # the task family that made it, or "file"
    kind: str  # the kind of work, e.g. "act", "ask"; reports group by it
    messages: tuple[Message, ...]  # what the policy sees first; ends with a user message
    tools: tuple[Tool, ...] = ()
    answer: Mapping[str, Any] = field(default_factory=dict)  # hidden from the policy
    verifiers: tuple[VerifierSpec, ...] = ()
    environment: EnvironmentSpec | None = None
    split: str = "train"
    source: str = ""  # generator and version, file, or production
    licence: str = ""  # SPDX id
    meta: Mapping[str, Any] = field(default_factory=dict)  # what reports slice by: desk, phrasing …

    @property
    def id(self) -> str:
        """`task-` and the hash of what is asked (not of split, source, licence or meta)."""
        asked = {
            "messages": [m.to_openai() for m in self.messages],
            "tools": [t.to_openai() for t in self.tools],
            "answer": self.answer,
            "verifiers": [[v.name, v.params] for v in self.verifiers],
            "environment": None if self.environment is None else to_plain(self.environment),
        }
        return "task-" + content_hash(asked, length=20)

    @property
    def cluster(self) -> str:
        """The group of tasks whose results may agree: one `meta.phrasing`, `pair` or `cluster`, else the task."""
        return str(self.meta.get("phrasing") or self.meta.get("pair") or self.meta.get("cluster") or self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A pinned, versioned set of tasks to evaluate on; it never enters training."""

    name: str
    version: str
    task_ids: tuple[str, ...]

    @property
    def hash(self) -> str:
        """The hash of the task ids, in order."""
        return content_hash(list(self.task_ids))


# --- episodes ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Which weights spoke: a checkpoint, and the optimiser step within its making."""

    checkpoint: str
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens were drawn."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    max_turn_tokens: int = 96  # tokens of one assistant turn
    max_tokens: int = 512  # assistant tokens of the whole episode
    max_turns: int = 8  # assistant turns
    max_calls: int = 64  # tool calls of the whole episode
    max_seconds: float = 0.0  # wall time of the whole episode, looked at between turns; 0 is no bound
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What something cost."""

    prompt_tokens: int = 0  # tokens that the policy read
    completion_tokens: int = 0  # tokens that the policy wrote
    tool_calls: int = 0
    seconds: float = 0.0  # wall time
    usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Sibling episodes of one task, sampled to be compared with each other."""

    id: str
    task_id: str
    episode_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One attempt at a task by one policy, and what made it.

    `token_ids`, `sampler_logprobs` and `loss_mask` have one entry per token of the whole
    conversation. `loss_mask` is 1 exactly on the tokens that the policy wrote (its end of
    turn included); `sampler_logprobs` is 0 elsewhere; it is the natural log of the whole
    distribution at the sampling temperature (at 1 where that is greedy), before truncation.
    """

    id: str
    task_id: str
    run_id: str
    stage: str  # the stage of the run that made it
    weights: Weights
    messages: tuple[Message, ...]  # the whole conversation; also the tool trace
    token_ids: tuple[int, ...] = ()
    sampler_logprobs: tuple[float, ...] = ()
    loss_mask: tuple[int, ...] = ()
    stop_reason: StopReason = "stop"
    error: str | None = None  # what failed, where something did
    error_boundary: Boundary | None = None  # whose fault it was
    group_id: str | None = None
    index: int = 0  # place among its siblings
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    template_hash: str = ""  # of the renderer's template
    environment_version: str = ""
    final_state: Mapping[str, Any] = field(default_factory=dict)  # what the environment held at the end
    split: str = "train"
    cost: Cost = field(default_factory=Cost)
    created_at: float = 0.0  # UTC seconds
    meta: Mapping[str, Any] = field(default_factory=dict)  # what it came with from elsewhere: trace, session, labels


# --- feedback: the record at the centre ----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who says so. `version` never changes meaning: new code or weights, new version."""

    kind: SourceKind
    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of an episode: one turn, or characters `start` to `end` of that turn's content."""

    turn: int  # index into `Episode.messages`
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Abstention:
    """The source looked and would not say; that is a statement too."""

    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One statement about one or more episodes.

    `value` by kind: score, a number; preference, the index of the better episode in `about`
    or 0.5 for a tie of two; ranking, the indices best first; label, text; correction and
    demonstration, messages in the OpenAI format; forecast, a probability. It is None for what
    is unscored, pending or retracted. An abstention is an answer of its own.
    """

    id: str
    about: tuple[str, ...]  # episode ids, in the order shown to the source
    criterion: str  # what was asked of the source
    kind: FeedbackKind
    source: Source
    value: Any = None
    abstention: Abstention | None = None
    status: Status = "scored"
    span: Span | None = None
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)  # parts of the verdict, quotes, logs
    confidence: float | None = None  # the source's own, 0 to 1
    cost: Cost = field(default_factory=Cost)
    created_at: float = 0.0  # UTC seconds: when the row was written
    observed_at: float | None = None  # UTC seconds: when the thing was seen
    due_at: float | None = None  # UTC seconds: when a pending value should be known
    resolver: str | None = None  # who or what resolves it
    propensity: float | None = None  # probability with which this item came to be asked
    assignment: str | None = None  # how it came to be asked: queue, policy, arm
    supersedes: str | None = None  # id of the feedback that this row replaces
    run_id: str | None = None

    def __post_init__(self) -> None:
        if not self.about:
            raise DataError("feedback must be about at least one episode; `about` is empty")
        if self.status == "scored" and self.value is None and self.abstention is None:
            raise DataError("feedback of status 'scored' needs a value or an abstention; use status 'unscored'")
        if self.status in ("unscored", "pending") and self.value is not None:
            raise DataError(f"feedback of status {self.status!r} carries no value: unscored is not zero")
        if self.status == "pending" and (self.due_at is None or self.resolver is None):
            raise DataError("pending feedback needs `due_at` and `resolver`")
        if self.status == "retracted" and self.supersedes is None:
            raise DataError("a retraction must name the feedback that it supersedes")
        if self.propensity is not None and not 0.0 < self.propensity <= 1.0:
            raise DataError(f"propensity {self.propensity} is not in (0, 1]")
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0:
            raise DataError(f"confidence {self.confidence} is not in [0, 1]")
        if self.kind == "score" and self.value is not None and not isinstance(self.value, (int, float)):
            raise DataError(f"a score must be a number, not {type(self.value).__name__}")


# --- what is made of feedback --------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetManifest:
    """A declared view of the ledger and the exact rows in it."""

    id: str
    kind: DatasetKind
    name: str
    run_id: str
    stage: str
    query: Mapping[str, Any]  # the declaration that selected the rows
    feedback_ids: tuple[str, ...]
    episode_ids: tuple[str, ...]
    task_ids: tuple[str, ...] = ()
    created_at: float = 0.0
    stale: str | None = None  # why it must be rebuilt; set when a row it holds is forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights, and the manifest of the datasets and the code that made them."""

    id: str
    run_id: str
    stage: str
    step: int
    path: str  # folder in Hugging Face layout; relative to the run folder, or a model name
    parent: str | None = None  # the checkpoint that training started from
    dataset_ids: tuple[str, ...] = ()
    objective: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    code_version: str = ""
    weights_hash: str = ""  # SHA-256 of the tensors
    metrics: Mapping[str, float] = field(default_factory=dict)
    created_at: float = 0.0
    stale: str | None = None  # why it is marked; set when data it was trained on is forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """One trait of a profile: a figure with its 95 % interval."""

    name: str  # e.g. refusal, over-refusal, verbosity, asks-for-context
    value: float
    low: float | None  # None where the data give no interval
    high: float | None
    n: int
    unit: str = "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How a model behaves, trait by trait."""

    id: str
    checkpoint: str
    suite: str
    traits: tuple[Trait, ...]
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """The release decision on a checkpoint against a baseline."""

    id: str
    checkpoint: str
    baseline: str
    verdict: Literal["pass", "block", "inconclusive"]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One named step of a recipe, with declared inputs and outputs."""

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One recipe carried out once."""

    id: str
    recipe: str  # its name
    config: Mapping[str, Any]  # the whole configuration, defaults filled in
    seed: int
    folder: str
    code_version: str
    stages: tuple[Stage, ...] = ()
    hardware: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0


# --- plain values and back -----------------------------------------------------------

R = TypeVar("R")


def to_plain(record: Any) -> Any:
    """A record as JSON-ready values: dataclasses become mappings, tuples become lists."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(value) for value in record]
    return record


def from_plain(kind: type[R], value: Any) -> R:
    """Read a record of type `kind` back from plain values.

    Raises `DataError` naming the record, the field and the value that does not fit.
    """
    from pydantic import ValidationError

    try:
        return _adapter(cast(Any, kind)).validate_python(value)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"] and isinstance(own := first.get("ctx", {}).get("error"), DataError):
            raise own from error  # what the record itself refused
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{kind.__name__}.{where}: {first['msg']}, got {first['input']!r:.200}") from error


@functools.cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
