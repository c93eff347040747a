"""Configuration: YAML files and `--set` overrides read into typed, frozen settings.

A recipe is YAML; what it may say is a `Settings` class. Whatever does not fit is a
`ConfigError` that names the line, the path and the nearest valid name, and all problems
of a file are told together. The YAML is read as version 1.2 understands it: `5e-4` is a
number, `no` is text, `010` is ten, dates are text, and a key given twice is an error.
Nothing is coerced except a whole number where a number is asked for.

Left out on purpose: includes and logic in YAML, and variables but for keys and headers, whose
`$NAME` is filled where they are used. A recipe that needs those is a Python function that
returns settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.resources
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from metier.base.errors import ConfigError

__all__ = [
    "Settings",
    "did_you_mean",
    "fill_from_environment",
    "find_recipe",
    "load_yaml",
    "packaged_recipes",
    "parse",
    "read_yaml",
]

M = TypeVar("M", bound=BaseModel)

NUMBER_LIKE = re.compile(r"[-+]?[0-9][0-9_.]*([eE][-+]?[0-9]+)?")


class Settings(BaseModel):
    """Base of everything that a recipe can say: frozen, no unknown keys, no coercion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def load_yaml(path: str | Path, model: type[M], overrides: Sequence[str] = ()) -> M:
    """Read a YAML file, apply `key.path=value` overrides and check it against `model`.

    Raises `ConfigError` that lists every problem of the file.
    """
    path = Path(path)
    source = _compose(_read(path), str(path))
    data = source.data if source.data is not None else {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {_show(data)}")
    set_paths = [_apply(data, override) for override in overrides]
    return _validate(model, data, str(path), source.node, set_paths)


def read_yaml(path: str | Path) -> Any:
    """The plain values of a YAML file, by YAML 1.2: `yes` and `on` are texts. Raises `ConfigError`."""
    return _compose(_read(Path(path)), str(path)).data


def parse(model: type[M], data: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "") -> M:
    """Check plain values, with `key.path=value` overrides, against `model`.

    `where` opens the message of the `ConfigError`.
    """
    plain = dict(data)
    set_paths = [_apply(plain, override) for override in overrides]
    return _validate(model, plain, where, None, set_paths)


def packaged_recipes() -> dict[str, Path]:
    """The recipes that ship with Metier, by name."""
    folder = Path(str(importlib.resources.files("metier"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file that a recipe's name stands for.

    An existing file is taken first; otherwise `desk`, `desk.yaml` and `recipes/desk.yaml`
    all name the packaged recipe `desk`, so that they work without a checkout.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = packaged_recipes()
    bare = re.fullmatch(r"(?:\./)?(?:recipes/)?([^/\\]+?)(?:\.ya?ml)?", name)
    if bare and bare[1] in packaged:
        return packaged[bare[1]]
    stem = bare[1] if bare else Path(name).stem
    raise ConfigError(
        f"no recipe {name!r}: there is no such file and no packaged recipe of that name"
        f"{did_you_mean(stem, packaged) or '.'} Packaged recipes: {', '.join(packaged) or 'none'}"
    )


def fill_from_environment(values: Mapping[str, str], what: str) -> dict[str, str]:
    """The values with `$NAME` and `${NAME}` filled from the process's environment. Raises `ConfigError`."""
    filled = {}
    for key, value in values.items():
        try:
            filled[key] = Template(value).substitute(os.environ)
        except KeyError as error:
            raise ConfigError(
                f"{what}: {key} needs the environment variable {error.args[0]}, which is not set"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{what}: {key} has a $ that names nothing; write $$ for the character") from error
    return filled


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


# --- reading YAML --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
    data: Any
    node: yaml.Node | None  # the tree behind `data`, for line numbers


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}; check the path") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder; name the YAML file in it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _compose(text: str, where: str) -> _Source:
    """Parse YAML text, keeping its tree. Errors carry `where` and the line."""
    try:
        loader = _loader_class()(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return _Source(None, None)
            _refuse_repeats(node, set())
            return _Source(loader.construct_document(node), node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: this is not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: this is not valid YAML: {' '.join(str(error).split())}") from error


def _refuse_repeats(node: yaml.Node, seen: set[int]) -> None:
    """Raise where a mapping gives one key twice; plain YAML would keep the last silently."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeats(item, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in first:
                    problem = f"the key {key.value!r} is given twice, first on line {first[key.value] + 1}; keep one"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                first[key.value] = key.start_mark.line
            _refuse_repeats(value, seen)


@functools.cache
def _loader_class() -> type[yaml.SafeLoader]:
    """A loader that reads plain values by the core schema of YAML 1.2."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {}

    def number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
        text = str(loader.construct_scalar(node)).lower()
        return int(text, 16 if text.startswith("0x") else 8 if text.startswith("0o") else 10)

    def real(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
        return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))

    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
        ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
        ("merge", r"<<", "<"),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))
    Loader.add_constructor("tag:yaml.org,2002:int", number)
    Loader.add_constructor("tag:yaml.org,2002:float", real)
    return Loader


# --- overrides -----------------------------------------------------------------------


def _apply(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one `key.path=value` in `data`; returns the path, list elements as indices."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set takes key.path=value, for instance stages.grpo.steps=3; got {override!r}")
    value = _compose(text, f"--set {override}").data
    place: Any = data
    seen: list[str] = []
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        here = ".".join(parts[:depth])
        if isinstance(place, dict):
            seen.append(part)
            if last:
                place[part] = value
            elif place.get(part) is None:
                place[part] = {}
            place = place[part]
        elif isinstance(place, list):
            index = _element(place, part, here, override)
            seen.append(str(index))
            if last:
                place[index] = value
            place = place[index]
        else:
            raise ConfigError(f"--set {override}: {here} is {_show(place)}, which holds no keys")
    return tuple(seen)


def _element(items: list[Any], part: str, here: str, override: str) -> int:
    """The index of a list element, from its `name` or its number."""
    names = {str(item["name"]): i for i, item in enumerate(items) if isinstance(item, dict) and "name" in item}
    if part in names:
        return names[part]
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    known = f" Names there: {', '.join(names)}" if names else f" It has {len(items)} elements, counted from 0"
    raise ConfigError(f"--set {override}: {here} has no element {part!r}{did_you_mean(part, names) or '.'}{known}")


# --- checking, and saying what is wrong ----------------------------------------------


def _validate(
    model: type[M], data: dict[str, Any], where: str, node: yaml.Node | None, set_paths: Sequence[tuple[str, ...]]
) -> M:
    try:
        text = json.dumps(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: holds a value that settings cannot use: {error}") from error
    try:
        # Read as JSON, strict mode takes a list for a tuple and text for a path, and coerces nothing else.
        return model.model_validate_json(text)
    except ValidationError as error:
        problems = _problems(model, data, error)
    told = []
    for path, problem in problems.items():
        line = _line(node, path)
        if any(path[: len(p)] == p[: len(path)] for p in set_paths if path):
            told.append(f"--set: {problem}")
        elif line is not None:
            told.append(f"line {line}: {problem}")
        else:
            told.append(problem)
    if len(told) == 1:
        raise ConfigError(f"{where}, {told[0]}" if told[0].startswith("line ") else f"{where}: {told[0]}".lstrip(": "))
    opening = f"{where} has {len(told)} problems:" if where else f"{len(told)} problems:"
    raise ConfigError("\n  ".join([opening, *told]))


def _problems(model: type[BaseModel], data: Any, error: ValidationError) -> dict[tuple[str, ...], str]:
    """One sentence for each path that is wrong, in the order of the settings."""
    found: dict[tuple[str, ...], list[tuple[Any, _Place]]] = {}
    for item in error.errors(include_url=False):
        place = _locate(model, item["loc"])
        if item["type"] == "union_tag_invalid":
            place = dataclasses.replace(place, path=(*place.path, _tag_key(item)))
        found.setdefault(place.path, []).append((item, place))
    return {path: _sentence(path, items) for path, items in found.items()}


def _sentence(path: tuple[str, ...], items: list[tuple[Any, _Place]]) -> str:
    item, place = items[0]
    name, kind, context = ".".join(path), item["type"], item.get("ctx") or {}
    if kind == "extra_forbidden":
        valid = sorted(place.owner.model_fields) if place.owner else []
        return f"unknown key {name!r}{did_you_mean(path[-1], valid) or '.'} Valid keys: {', '.join(valid) or 'none'}"
    if kind == "missing":
        return f"the key {name!r} is missing"
    if kind == "union_tag_invalid":
        valid = sorted(_members(place.annotation, path[-1]))
        tag = str(context.get("tag"))
        return f"{name}: unknown {path[-1]} {tag!r}{did_you_mean(tag, valid) or '.'} Known: {', '.join(valid)}"
    if kind == "union_tag_not_found":
        key = _tag_key(item)
        valid = sorted(_members(place.annotation, key))
        return f"{name or 'the top'}: the key {key!r} is missing; it is one of {', '.join(valid)}"
    if kind == "value_error":
        return f"{name}: {context['error']}" if name else str(context["error"])
    if kind == "literal_error":
        valid = [str(value) for value in _literals(place.annotation)]
        near = did_you_mean(str(item["input"]), valid)
        return f"{name}: expected one of {', '.join(valid)}, got {_show(item['input'])}{near}"
    wanted = list(dict.fromkeys(_wanted(other["type"], other) for other, _ in items))
    hint = ""
    if isinstance(item["input"], str) and NUMBER_LIKE.fullmatch(item["input"]) and "number" in wanted[0]:
        hint = " as text; remove the quotes"
    return f"{name or 'the top'}: expected {' or '.join(wanted)}, got {_show(item['input'])}{hint}"


def _wanted(kind: str, item: Any) -> str:
    """What was expected, in plain words."""
    context = item.get("ctx") or {}
    words = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "text",
        "path_type": "a path",
        "none_required": "nothing",
        "list_type": "a list",
        "tuple_type": "a list",
        "set_type": "a list",
        "frozen_set_type": "a list",
        "dict_type": "keys and values",
        "mapping_type": "keys and values",
        "model_type": "keys and values",
        "model_attributes_type": "keys and values",
        "greater_than": "more than {gt}",
        "greater_than_equal": "{ge} or more",
        "less_than": "less than {lt}",
        "less_than_equal": "{le} or less",
        "multiple_of": "a multiple of {multiple_of}",
        "too_short": "at least {min_length} of them",
        "too_long": "at most {max_length} of them",
        "string_too_short": "at least {min_length} characters",
        "string_too_long": "at most {max_length} characters",
        "string_pattern_mismatch": "text that matches {pattern}",
    }
    if kind in words:
        return words[kind].format(**context)
    message = str(item["msg"])
    return re.sub(r"^.*? should (be|have|match) ", "", message)


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- finding the place that an error is about ----------------------------------------


@dataclasses.dataclass(frozen=True)
class _Place:
    path: tuple[str, ...]  # keys and indices as the file spells them, tags of unions left out
    annotation: Any  # the type expected there
    owner: type[BaseModel] | None  # the settings class that holds the last key


def _locate(model: type[BaseModel], loc: Sequence[str | int]) -> _Place:
    """Walk the types along pydantic's location, dropping the union tags that it mixes in."""
    annotation: Any = model
    owner: type[BaseModel] | None = None
    path: list[str] = []
    for part in loc:
        annotation = _bare(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            owner = annotation
            path.append(str(part))
            field = annotation.model_fields.get(str(part))
            annotation = field if field is not None else Any
            continue
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin in (typing.Union, types.UnionType):
            annotation = _member(annotation, str(part))
            continue
        if part == "[key]":
            continue
        path.append(str(part))
        owner = None
        if origin is tuple and arguments:
            fixed = arguments[-1] is not Ellipsis and isinstance(part, int) and part < len(arguments)
            annotation = arguments[part if fixed and isinstance(part, int) else 0]
        else:
            annotation = arguments[-1] if arguments else Any
    return _Place(tuple(path), _bare(annotation), owner)


def _bare(annotation: Any) -> Any:
    """The type without field, `Annotated` and an only `None` beside it."""
    while True:
        if isinstance(annotation, FieldInfo):
            annotation = annotation.annotation
        elif typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
            rest = [a for a in typing.get_args(annotation) if a is not type(None)]
            if len(rest) != 1:
                return annotation
            annotation = rest[0]
        else:
            return annotation


def _members(annotation: Any, key: str) -> dict[str, Any]:
    """The classes of a union by the literal that their field `key` holds."""
    found: dict[str, Any] = {}
    for member in map(_bare, typing.get_args(_bare(annotation))):
        if isinstance(member, type) and issubclass(member, BaseModel) and key in member.model_fields:
            for value in _literals(member.model_fields[key].annotation):
                found[str(value)] = member
        elif typing.get_origin(member) in (typing.Union, types.UnionType):
            found.update(_members(member, key))
    return found


def _member(annotation: Any, tag: str) -> Any:
    """The part of a union that pydantic's tag names; `Any` where the tag names a plain type."""
    by_kind = _members(annotation, "kind")
    if tag in by_kind:
        return by_kind[tag]
    for member in map(_bare, typing.get_args(annotation)):
        if isinstance(member, type) and member.__name__ == tag:
            return member
        if isinstance(member, type) and issubclass(member, BaseModel):
            for field in member.model_fields.values():
                if tag in map(str, _literals(field.annotation)):
                    return member
        if tag.startswith(f"{getattr(typing.get_origin(member), '__name__', '')}["):
            return member
    return Any


def _literals(annotation: Any) -> tuple[Any, ...]:
    annotation = _bare(annotation)
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _tag_key(item: Any) -> str:
    return str((item.get("ctx") or {}).get("discriminator", "kind")).strip("'")


def _line(node: yaml.Node | None, path: Sequence[str]) -> int | None:
    """The line of the deepest part of `path` that the file spells; None where it spells nothing of it."""
    if node is None:
        return None
    line = node.start_mark.line
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == part), None)
            if pair is None:
                return None if part == path[0] else line + 1
            line, node = pair[0].start_mark.line, pair[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line
        else:
            break
    return line + 1
