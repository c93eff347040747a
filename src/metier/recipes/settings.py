"""What a recipe can say: the model, the tasks, and the stages in order.

`of` names the stage whose checkpoint a stage starts from or measures ("base" is the
model itself); `data` names the stage that supplies its demonstrations. A stage may only
name an earlier one, and combinations that make no sense are refused when the recipe is
read, before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from metier.base.config import Settings, did_you_mean
from metier.base.errors import ConfigError
from metier.feedback.data.declaration import DatasetSettings, Decontaminate, Dedup, View
from metier.feedback.people.simulated import Habit
from metier.models.adapters import Adapter
from metier.models.hub import Device
from metier.records.types import Stage, Tool, VerifierSpec
from metier.rollout.endpoint import Endpoint
from metier.rollout.episodes import ToolLimits
from metier.rollout.http_tools import HttpTool, Method
from metier.rollout.mcp_tools import McpServer
from metier.rollout.sampling import SamplingSettings
from metier.rollout.tools import RunnableTool, register_tool
from metier.train.data import TooLong
from metier.train.objectives.policy import ADVANTAGES
from metier.train.objectives.registry import get_objective
from metier.train.optimizer import Learning, Schedule

__all__ = [
    "BASE",
    "Crowd",
    "Dataset",
    "Demonstrate",
    "Draw",
    "EndpointSettings",
    "EngineSettings",
    "Evaluate",
    "Fit",
    "HttpToolSettings",
    "Judge",
    "McpSettings",
    "Measure",
    "ModelSettings",
    "Overlong",
    "Recipe",
    "Report",
    "Rl",
    "SamplingSettings",
    "Sft",
    "StageSettings",
    "TaskSettings",
    "ToolSettings",
]

BASE = "base"
# Methods of an `rl` stage beside the policy gradients, and the objective that each learns by.
SELECTING = {"rejection": "sft", "best_of_n": "sft", "online_dpo": "dpo", "distill": "distill"}

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class ModelSettings(Settings):
    """The model that is post-trained."""

    name: str = "smollm2"  # "smollm2", a local folder or a hub id
    renderer: Literal["auto", "chatml", "template"] = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: Device = "auto"  # a GPU where there is one
    adapter: Adapter | None = None  # what every training stage trains, instead of all weights


class TaskSettings(Settings):
    """Where tasks come from: a registered family, or a JSONL file."""

    family: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)  # of a family that takes some
    file: str | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> TaskSettings:
        if (self.family is None) == (self.file is None):
            raise ValueError("name either a 'family' or a 'file'")
        if self.options and self.family is None:
            raise ValueError("a 'file' of tasks takes no options")
        return self


class EngineSettings(Settings):
    """What draws the policy's words."""

    kind: Literal["torch", "vllm"] = "torch"
    python: str | None = None  # of the environment that has vLLM
    address: str | None = None  # host:port of a vLLM worker that runs already
    options: dict[str, Any] = Field(default_factory=dict)  # vLLM's engine arguments

    @model_validator(mode="after")
    def _one_place(self) -> EngineSettings:
        if self.kind == "torch" and (self.python or self.address or self.options):
            raise ValueError("the torch engine takes no 'python', 'address' or 'options'; say 'kind: vllm'")
        if self.address and (self.python or self.options):
            raise ValueError("a worker at an 'address' runs already: it takes no 'python' and no 'options'")
        return self


class EndpointSettings(Settings):
    """A model behind an OpenAI-compatible endpoint."""

    model: str
    base_url: str | None = None  # OpenAI's unless told
    key: str = "$OPENAI_API_KEY"  # or another variable; never the key itself
    at_once: Positive = 16  # requests
    per_minute: Annotated[float, Field(ge=0)] = 0.0  # requests; 0 is no bound
    retries: Annotated[int, Field(ge=0)] = 5
    seconds: Annotated[float, Field(gt=0)] = 120.0  # of one request
    usd_in: Annotated[float, Field(ge=0)] = 0.0  # a million tokens read
    usd_out: Annotated[float, Field(ge=0)] = 0.0  # a million tokens written
    options: dict[str, Any] = Field(default_factory=dict)  # what else goes into each request

    def endpoint(self) -> Endpoint:
        """The endpoint. Raises `ConfigError`."""
        return Endpoint(**self.model_dump())


class HttpToolSettings(Settings):
    """A tool that is a request to an HTTP endpoint."""

    name: str
    description: str = ""  # what the model reads about it
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})  # a JSON schema
    url: str  # `{argument}` in it is filled
    method: Method = "POST"
    headers: dict[str, str] = Field(default_factory=dict)  # `$NAME` is filled from the environment variables
    seconds: Annotated[float, Field(gt=0)] = 30.0  # for everything, repetitions included
    retries: Annotated[int, Field(ge=0)] = 2  # of a call that cannot have had an effect

    def runnable(self) -> RunnableTool:
        """The tool. Raises `ConfigError`."""
        record = Tool(name=self.name, description=self.description, parameters=self.parameters)
        rest = self.model_dump(exclude={"name", "description", "parameters"})
        return HttpTool(record=record, **rest).runnable()


class McpSettings(Settings):
    """An MCP server whose tools are offered: one to start, or one that runs."""

    command: tuple[str, ...] = ()  # the program and its arguments, over a pipe
    env: dict[str, str] = Field(default_factory=dict)  # of the program; `$NAME` is filled
    url: str = ""  # of a streamable HTTP endpoint
    headers: dict[str, str] = Field(default_factory=dict)  # `$NAME` is filled from the environment variables
    only: tuple[str, ...] | None = None  # of its tools; all of them unless told
    seconds: Annotated[float, Field(gt=0)] = 30.0  # for connecting, and for each call

    def server(self, name: str) -> McpServer:
        """The server, not connected to yet. Raises `ConfigError`."""
        return McpServer(name, **self.model_dump(exclude={"only"}))


class ToolSettings(Settings):
    """How tools are run, and where those come from that are no Python functions."""

    workers: Positive = 1  # at once, for tools that wait on something; 1 keeps episodes the same on every run
    seconds: Annotated[float, Field(gt=0)] = 60.0  # that a turn's calls may take, where there are several workers
    characters: Positive = 20_000  # of one answer; the rest is cut
    http: tuple[HttpToolSettings, ...] = ()
    mcp: dict[str, McpSettings] = Field(default_factory=dict)  # by a name of your choice

    def limits(self) -> ToolLimits:
        """The bounds, for the episode runner."""
        return ToolLimits(workers=self.workers, seconds=self.seconds, characters=self.characters)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Register the tools, and hold the servers while they may be called. Raises `ConfigError`."""
        with ExitStack() as stack:
            found = [http.runnable() for http in self.http]
            for name, settings in self.mcp.items():
                server = stack.enter_context(settings.server(name))
                found += server.tools(settings.only)
            names = [made.record.name for made in found]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ConfigError(f"two tools are called {twice[0]!r}; name those that you want with `only`")
            for made in found:
                register_tool(made)
            yield


class Evaluate(Settings):
    """Measure a checkpoint on splits that training never sees."""

    kind: Literal["evaluate"]
    name: str
    of: str = BASE
    endpoint: EndpointSettings | None = None  # another model to measure, instead of `of`
    splits: dict[str, Positive]  # split -> number of tasks
    text: str | None = None  # held-out text whose loss is measured: "general", or a JSONL file of {"text": ...}
    sampling: SamplingSettings = SamplingSettings(temperature=0.0)
    chunk: Positive = 128  # episodes between two savings

    @model_validator(mode="after")
    def _of_something(self) -> Evaluate:
        if self.endpoint is not None and (self.of != BASE or self.text is not None):
            raise ValueError(
                "a model behind an 'endpoint' takes the place of 'of', and its loss on a 'text' is not told"
            )
        if self.endpoint is not None and self.sampling.top_k:
            raise ValueError("an 'endpoint' takes no 'top_k'")
        return self


class Demonstrate(Settings):
    """Let the oracle write demonstrations."""

    kind: Literal["demonstrate"]
    name: str
    split: str
    n: Positive


class Sft(Learning):
    """Supervised fine-tuning on demonstrations, with loss on the assistant's tokens only."""

    kind: Literal["sft"]
    name: str
    of: str = BASE
    data: str
    lr: Rate = 5e-4
    epochs: Positive = 1
    batch: Positive = 32  # episodes per step
    block: Positive = 8  # episodes of one system prompt that stay together when data is shuffled
    max_steps: Positive | None = None
    schedule: Schedule = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 5  # steps


class Overlong(Settings):
    """Soft punishment of long episodes: from `limit` - `buffer` tokens on, up to `weight` at `limit`."""

    limit: Positive
    buffer: Positive
    weight: Annotated[float, Field(ge=0)] = 1.0


class RewardSettings(Settings):
    """How verdicts become one number."""

    success: float = 1.0
    partial: float = 0.0
    overlong: Overlong | None = None
    kl: Annotated[float, Field(ge=0)] = 0.0  # times the k1 estimate of KL to the stage's start, taken off


class VerifierSettings(Settings):
    """A verifier, by its name, with its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    def record(self) -> VerifierSpec:
        """The same, as tasks have it."""
        return VerifierSpec(name=self.name, params=self.params)


class Rl(Learning):
    """Sample groups of episodes, verify them, and learn from the verdicts."""

    kind: Literal["rl"]
    name: str
    of: str
    split: str
    method: str = "grpo"  # a policy gradient's name, or rejection, best_of_n, online_dpo, distill
    options: dict[str, Any] = Field(default_factory=dict)  # of the policy gradient, of dpo or of distill
    teacher: str | None = None  # of distill: a model with the same tokenizer
    advantage: Literal["group", "group_unscaled", "leave_one_out", "batch"] | None = None  # the method's unless told
    steps: Positive
    tasks: Positive = 8  # per step
    resample: Annotated[int, Field(ge=0)] | None = None  # rounds that replace groups without signal; dapo 2, else 0
    updates: Positive = 1  # optimiser steps that share one step's episodes
    staleness: Annotated[int, Field(ge=0)] = 0  # steps that weights which draw beside the training may be old
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0  # of ppo's advantages
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    group: Positive = 8  # episodes per task
    block: Positive = 4  # tasks of one system prompt that stay together when tasks are shuffled
    lr: Rate = 3e-5
    verifiers: tuple[VerifierSettings, ...] = ()  # whose verdicts are learned from, in place of the tasks' own
    reward: RewardSettings = RewardSettings()
    sampling: SamplingSettings = SamplingSettings()
    eval_every: Annotated[int, Field(ge=0)] = 0  # steps between small evaluations; 0 is never
    eval_split: str = "heldout"
    eval_tasks: Positive = 64

    @model_validator(mode="after")
    def _fits(self) -> Rl:
        known = [*ADVANTAGES, *SELECTING]
        if self.method not in known:
            raise ValueError(
                f"there is no method {self.method!r}{did_you_mean(self.method, known)} Known: {', '.join(known)}"
            )
        if (self.method == "distill") != (self.teacher is not None):
            raise ValueError(f"{self.method} {'needs a' if self.teacher is None else 'takes no'} teacher")
        if self.objective == "sft" and self.options:
            raise ValueError(f"{self.method} takes no options")
        if not self.gradient and (self.advantage or self.reward.kl):
            raise ValueError(f"{self.method} takes neither advantage nor reward.kl")
        if self.method == "ppo" and self.advantage:
            raise ValueError("ppo has its advantages from a value head; leave advantage out")
        get_objective(self.objective, **self.options)
        if self.staleness and self.rounds:
            raise ValueError("episodes that are drawn beside the training are not replaced: 'resample' must be 0")
        if self.staleness and self.options.get("mismatch") == "none":
            raise ValueError("episodes of older weights must be corrected for: 'mismatch' cannot be none")
        if self.gradient and not self.sampling.temperature:
            raise ValueError(f"{self.method} learns from draws: 'sampling.temperature' must be above 0")
        alone = self.method in ("rejection", "distill") or (self.gradient and self.advantage_kind in ("batch", "gae"))
        if not alone and self.group < 2:
            raise ValueError(f"{self.method} compares siblings: 'group' must be at least 2")
        return self

    @property
    def gradient(self) -> bool:
        """Whether the method is a policy gradient."""
        return self.method in ADVANTAGES

    @property
    def temperature(self) -> float:
        """What it learns at: a policy gradient at what it samples at, the others at 1."""
        return self.sampling.temperature if self.gradient else 1.0

    @property
    def objective(self) -> str:
        """The name of the objective that it learns by."""
        return SELECTING.get(self.method, self.method)

    @property
    def rounds(self) -> int:
        """How often groups without signal are replaced in one step."""
        return self.resample if self.resample is not None else 2 if self.method == "dapo" else 0

    @property
    def advantage_kind(self) -> str:
        """The advantage that is used."""
        return self.advantage or ADVANTAGES[self.method]


class Draw(Settings):
    """Draw a group of episodes for each task and verify them, to be compared."""

    kind: Literal["draw"]
    name: str
    of: str = BASE
    split: str
    skip: Annotated[int, Field(ge=0)] = 0  # tasks of the split that are passed over, because another stage has them
    tasks: Positive
    group: Positive = 4  # episodes per task
    sampling: SamplingSettings = SamplingSettings()


class Crowd(Settings):
    """Ask simulated people which of two episodes of a task is better; what they say goes into the ledger.

    The pairs are those of which the verifiers say that one is better, so the truth is known.
    """

    kind: Literal["crowd"]
    name: str
    data: str  # a `draw` stage
    people: dict[Habit, Positive]  # how many of each habit
    votes: Positive = 3  # of a pair
    pairs: Positive = 4  # of a task, at most
    criterion: str = "better"


class Judge(Learning):
    """Train a reward model on pairs with the verifiers' truth, audit it on others, and let it judge what a crowd did.

    A judge that its audit does not find fit says nothing.
    """

    kind: Literal["judge"]
    name: str
    of: str = BASE
    gold: str  # a `draw` stage; half of its tasks teach, half audit
    pairs: Positive = 2  # of a task, at most
    judges: str  # a `crowd` stage, whose pairs it judges under the same criterion
    lr: Rate = 3e-5
    epochs: Positive = 1
    batch: Positive = 8
    schedule: Schedule = "cosine"


class Dataset(Settings):
    """Build a dataset from the feedback in the ledger; a view that names no run is of this one."""

    kind: Literal["dataset"]
    name: str
    views: Annotated[tuple[View, ...], Field(min_length=1)]
    rows: Positive | None = None
    repeats: Positive = 1
    dedup: Dedup = Dedup()
    decontaminate: Decontaminate = Decontaminate()

    def declared(self, run_id: str, seed: int) -> DatasetSettings:
        """As `metier data build` takes it."""
        views = [
            view
            if view.where.runs
            else view.model_copy(update={"where": view.where.model_copy(update={"runs": (run_id,)})})
            for view in self.views
        ]
        return DatasetSettings(
            name=self.name,
            views=tuple(views),
            rows=self.rows,
            repeats=self.repeats,
            dedup=self.dedup,
            decontaminate=self.decontaminate,
            seed=seed,
        )


class Fit(Learning):
    """Learn from a dataset, as `metier train` does from a file."""

    kind: Literal["fit"]
    name: str
    of: str = BASE
    data: str  # a `dataset` stage
    objective: str
    options: dict[str, Any] = Field(default_factory=dict)  # of the objective
    heads: Positive = 1  # for reward and process_reward
    lr: Rate = 1e-5
    epochs: Positive = 1
    batch: Positive = 16  # rows per step
    schedule: Schedule = "cosine"
    max_steps: Positive | None = None
    max_length: Positive = 2048  # tokens of a row
    too_long: TooLong = "error"

    @model_validator(mode="after")
    def _of_rows(self) -> Fit:
        if get_objective(self.objective, **self.options).rows == "episode":
            raise ValueError(f"{self.objective!r} learns from episodes: name it as the method of an `rl` stage")
        if self.objective == "distill":
            raise ValueError("distill needs a teacher: `metier train distill`, or the method of an `rl` stage")
        return self

    @property
    def scores(self) -> bool:
        """Whether what it trains gives scores, and does not speak."""
        return get_objective(self.objective, **self.options).output == "scores"


class Measure(Settings):
    """How often a reward model prefers the better of two episodes, by the verifiers' truth, and how well it knows."""

    kind: Literal["measure"]
    name: str
    of: str  # a `fit` stage of the objective `reward`
    data: str  # a `draw` stage of tasks that it did not learn from
    pairs: Positive = 4  # of a task, at most


class Report(Settings):
    """Write the page."""

    kind: Literal["report"]
    name: str = "report"


StageSettings = Annotated[
    Evaluate | Demonstrate | Sft | Rl | Draw | Crowd | Judge | Dataset | Fit | Measure | Report,
    Field(discriminator="kind"),
]


class _Made:
    """What earlier stages leave for later ones: names by what they are."""

    def __init__(self) -> None:
        self.names: set[str] = {BASE}
        self.policies: set[str] = {BASE}  # what can speak, and be trained on
        self.scorers: set[str] = set()
        self.demonstrations: set[str] = set()
        self.draws: set[str] = set()
        self.crowds: set[str] = set()
        self.datasets: set[str] = set()

    def check(self, stage: StageSettings) -> None:
        """Raise `ValueError` where a stage's name, or what it takes, is not possible."""
        if stage.name in self.names:
            raise ValueError(f"two stages are called {stage.name!r}")
        if not stage.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"stage name {stage.name!r} may hold letters, digits, '-' and '_' only")
        if isinstance(stage, (Evaluate, Sft, Rl, Draw, Judge, Fit)):
            self._need(stage, f"is of {stage.of!r}", stage.of, self.policies, "trains")
        if isinstance(stage, Sft):
            self._need(stage, f"takes data from {stage.data!r}", stage.data, self.demonstrations, "demonstrates")
        if isinstance(stage, Fit):
            self._need(stage, f"takes data from {stage.data!r}", stage.data, self.datasets, "builds")
        if isinstance(stage, (Crowd, Measure)):
            self._need(stage, f"takes episodes from {stage.data!r}", stage.data, self.draws, "draws")
        if isinstance(stage, Judge):
            self._need(stage, f"takes gold from {stage.gold!r}", stage.gold, self.draws, "draws")
            self._need(stage, f"judges what {stage.judges!r} compared", stage.judges, self.crowds, "asks")
        if isinstance(stage, Measure):
            self._need(stage, f"measures {stage.of!r}", stage.of, self.scorers, "fits as a reward model")

    def add(self, stage: StageSettings) -> None:
        """Note what a stage makes."""
        self.names.add(stage.name)
        if isinstance(stage, Fit):
            (self.scorers if stage.scores else self.policies).add(stage.name)
        for kinds, held in (
            ((Sft, Rl), self.policies),
            ((Demonstrate,), self.demonstrations),
            ((Draw,), self.draws),
            ((Crowd,), self.crowds),
            ((Dataset,), self.datasets),
        ):
            if isinstance(stage, kinds):
                held.add(stage.name)

    def _need(self, stage: StageSettings, what: str, name: str, held: set[str], does: str) -> None:
        if name not in held:
            raise ValueError(f"stage {stage.name!r} {what}, which no earlier stage {does}{did_you_mean(name, held)}")


class Recipe(Settings):
    """A whole configuration."""

    name: str
    seed: int = 0
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    tasks: TaskSettings
    user: EndpointSettings | None = None  # the model that plays users who have instructions
    plugins: tuple[str, ...] = ()  # Python files that register tools and verifiers
    tracker: str = "none"  # "tensorboard" also writes TensorBoard files
    threads: Positive | None = None  # of torch; its own choice unless told
    tools: ToolSettings = ToolSettings()
    workers: Positive = 1  # verifiers and oracles that work at once, for those that wait on something
    save_seconds: Annotated[float, Field(ge=0)] = 60.0  # a crash loses this much work, or two steps
    keep_states: Positive = 1  # of a training stage's states to go on from, how many stay
    stages: tuple[StageSettings, ...]

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        if not self.stages:
            raise ValueError("a recipe needs at least one stage")
        made = _Made()
        for stage in self.stages:
            made.check(stage)
            made.add(stage)
        if self.engine.kind == "vllm":
            for stage in self.stages:
                if isinstance(stage, (Evaluate, Rl, Draw)):
                    s = stage.sampling
                    if s.temperature > 0 and (s.top_p < 1 or s.top_k):
                        raise ValueError(f"stage {stage.name!r}: the vllm engine takes no 'top_p' and no 'top_k'")
                if isinstance(stage, Rl) and stage.method == "ppo":
                    raise ValueError(f"stage {stage.name!r}: ppo's value head cannot go to the vllm engine")
        compared = {s.data for s in self.stages if isinstance(s, Crowd)}
        compared |= {s.gold for s in self.stages if isinstance(s, Judge)}
        learnt = {s.split for s in self.stages if isinstance(s, (Demonstrate, Rl))}
        learnt |= {s.split for s in self.stages if isinstance(s, Draw) and s.name in compared}
        measured = {split for s in self.stages if isinstance(s, Evaluate) for split in s.splits}
        if learnt & measured:
            raise ValueError(f"split {min(learnt & measured)!r} is both trained on and evaluated on")
        return self

    def records(self) -> tuple[Stage, ...]:
        """The stages as records, with their declared inputs and outputs."""
        out = []
        for stage in self.stages:
            inputs: tuple[str, ...] = ()
            outputs: tuple[str, ...] = (f"checkpoint:{stage.name}",)
            if isinstance(stage, Evaluate):
                inputs, outputs = (stage.of, *stage.splits), ("episodes", "feedback")
            elif isinstance(stage, Demonstrate):
                inputs, outputs = (stage.split,), ("episodes", "feedback", f"dataset:{stage.name}")
            elif isinstance(stage, Sft):
                inputs = (stage.of, stage.data)
            elif isinstance(stage, Rl):
                inputs, outputs = (stage.of, stage.split), ("episodes", "feedback", f"dataset:{stage.name}", *outputs)
            elif isinstance(stage, Draw):
                inputs, outputs = (stage.of, stage.split), ("episodes", "feedback")
            elif isinstance(stage, Crowd):
                inputs, outputs = (stage.data,), ("feedback",)
            elif isinstance(stage, Judge):
                inputs, outputs = (stage.of, stage.gold, stage.judges), ("feedback", f"dataset:{stage.name}", *outputs)
            elif isinstance(stage, Dataset):
                inputs, outputs = ("feedback",), (f"dataset:{stage.name}",)
            elif isinstance(stage, Fit):
                inputs = (stage.of, stage.data)
            elif isinstance(stage, Measure):
                inputs, outputs = (stage.of, stage.data), ()
            else:
                inputs, outputs = tuple(s.name for s in self.stages if s is not stage), ("report.html",)
            out.append(Stage(name=stage.name, kind=stage.kind, inputs=inputs, outputs=outputs))
        return tuple(out)
