"""Writes docs/settings.md out of the settings themselves: `python -m metier.cli.reference > docs/settings.md`.

Every setting of a recipe, of `metier data build` and of `metier train` with its type, its default and the comment
that stands beside it in the source. A test compares the file with what this writes.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic_core import PydanticUndefined

from metier.base.config import Settings
from metier.feedback.data import declaration
from metier.models.adapters import Adapter
from metier.recipes import settings as recipe
from metier.train.fit import FitSettings

__all__ = ["render"]

OPENING = """# Settings

Written by `make docs` from the settings themselves; do not edit. A recipe is YAML; any value in
it is changed on the command line by its path, `metier run desk --set stages.grpo.steps=4`.
`metier train` takes its settings as `--set lr=1e-5`. A setting without a default must be given.
"""

PARTS: tuple[tuple[str, type[Settings]], ...] = (
    ("A recipe", recipe.Recipe),
    ("`model`", recipe.ModelSettings),
    ("`adapter`, of a model or of `metier train`", Adapter),
    ("`engine`", recipe.EngineSettings),
    ("`tasks`", recipe.TaskSettings),
    ("`user`, and `endpoint` of an `evaluate` stage", recipe.EndpointSettings),
    ("A stage of kind `evaluate`", recipe.Evaluate),
    ("A stage of kind `demonstrate`", recipe.Demonstrate),
    ("A stage of kind `sft`", recipe.Sft),
    ("A stage of kind `rl`", recipe.Rl),
    ("A stage of kind `draw`", recipe.Draw),
    ("A stage of kind `crowd`", recipe.Crowd),
    ("A stage of kind `judge`", recipe.Judge),
    ("A stage of kind `dataset`", recipe.Dataset),
    ("`views`, of kind `demonstrations`", declaration.DemonstrationView),
    ("`views`, of kind `pairs`", declaration.PairView),
    ("`views`, of kind `unpaired`", declaration.UnpairedView),
    ("`views`, of kind `steps`", declaration.StepView),
    ("`views`, of kind `rl`", declaration.TaskView),
    ("`where`, of a view", declaration.Where),
    ("`pool`, of a view", declaration.Pool),
    ("`balance`, of a view, each", declaration.Balance),
    ("`dedup`, of a dataset", declaration.Dedup),
    ("`decontaminate`, of a dataset", declaration.Decontaminate),
    ("A stage of kind `fit`", recipe.Fit),
    ("A stage of kind `measure`", recipe.Measure),
    ("`reward`, of an `rl` stage", recipe.RewardSettings),
    ("`verifiers`, of an `rl` stage, each", recipe.VerifierSettings),
    ("`overlong`, of a reward", recipe.Overlong),
    ("`sampling`, of an `rl`, `draw` or `evaluate` stage", recipe.SamplingSettings),
    ("`tools`", recipe.ToolSettings),
    ("`tools.http`, each", recipe.HttpToolSettings),
    ("`tools.mcp`, each", recipe.McpSettings),
    ("A stage of kind `report`", recipe.Report),
    ("`metier train`", FitSettings),
)
BOUNDS = {Gt: ("gt", ">"), Ge: ("ge", "≥"), Lt: ("lt", "<"), Le: ("le", "≤")}


def render() -> str:
    """The whole page, in Markdown."""
    parts = [OPENING]
    for title, settings in PARTS:
        notes = _comments(settings)
        rows = ["| setting | type | default | |", "|---|---|---|---|"]
        for name, field in settings.model_fields.items():
            bounds = [f"{sign} {getattr(m, key)}" for m in field.metadata for kind, (key, sign) in BOUNDS.items()
                      if isinstance(m, kind)]  # fmt: skip
            kind = " ".join([_type(field.annotation), *bounds]).replace("|", "\\|")
            note = notes.get(name, "").replace("|", "\\|")
            rows.append(f"| `{name}` | {kind} | {_default(field)} | {note} |")
        parts.append(f"## {title}\n\n{inspect.getdoc(settings)}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _comments(settings: type[Settings]) -> dict[str, str]:
    """Setting -> the comment at the end of its line."""
    found: dict[str, str] = {}
    for one in reversed(settings.__mro__):  # what it inherits comes first
        if issubclass(one, Settings):
            found |= re.findall(r"^    (\w+): [^#\n]*#\s*(.+)$", inspect.getsource(one), flags=re.MULTILINE)
    return found


def _type(annotation: Any) -> str:
    """A type as a reader of YAML knows it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(_type(one) for one in inner if one is not type(None)))
    if origin is tuple:
        return f"list of {_type(inner[0])}" if Ellipsis in inner else f"list of {len(inner)}"
    if origin is dict:
        return f"map to {_type(inner[1])}"
    if getattr(annotation, "__metadata__", None):  # Annotated inside another type
        return _type(inner[0])
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return "see below"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), "any"
    )


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    if value is None:
        return "none"
    if isinstance(value, Settings):
        given = value.model_dump(exclude_unset=True)
        return f"`{given}`" if given else "its defaults"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    sys.stdout.write(render())
