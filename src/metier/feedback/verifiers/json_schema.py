"""The verifier "json_schema": the last assistant message is one JSON value that a schema allows.

The value stands alone, or in one fenced block; words around a block are allowed, a second value is not.
It is JSON as RFC 8259 has it: no NaN, no name twice in one object. Schemas are of draft 7 or
2020-12 (what `$schema` says, else 2020-12). Nothing is fetched: a reference to another place makes the
episode unscored. `format` is an annotation, as the drafts have it, unless `formats` is true.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from metier.base.schemas import BadSchemaError, validator_of
from metier.feedback.verifiers.protocol import Attempt, Described, Verdict, last_words, once, unscored
from metier.records.types import Task
from metier.sandbox.programs import blocks_of

__all__ = ["JsonSchema", "read_value"]

_LONGEST = 2_000_000  # characters of a response that is read


class JsonSchema(Described):
    """Valid under the schema, or not."""

    name = "json_schema"
    version = "2"
    parameters: ClassVar = {
        "schema": "the schema, an object or true or false",
        "formats": "true: `format` is checked as well; default false",
    }
    seconds = 5.0

    def verify(self, task: Task, attempt: Attempt, params: Mapping[str, Any]) -> Verdict:
        """1 where the value is valid, else 0; unscored for a schema that is none or refers elsewhere."""
        schema = params.get("schema")
        if not isinstance(schema, (dict, bool)):
            return unscored('the parameter "schema" is missing or no schema')
        try:
            validator = validator_of(schema, formats=bool(params.get("formats")))
        except BadSchemaError as error:
            return unscored(f"the schema is none, or refers to what is not in it: {error}")
        value, why = read_value(last_words(attempt))
        if why:
            return Verdict(score=0.0, reason=why, parts={"json": 0.0, "valid": 0.0})
        try:
            fault = next(validator.iter_errors(value), None)
        except (ValueError, RecursionError) as error:
            return Verdict(score=0.0, reason=f"it cannot be checked: {error}", parts={"json": 1.0, "valid": 0.0})
        if fault is not None:
            where = "/".join(map(str, fault.instance_path)) or "the value"
            return Verdict(score=0.0, reason=f"{where}: {fault.message[:200]}", parts={"json": 1.0, "valid": 0.0})
        return Verdict(score=1.0, reason="it is valid", parts={"json": 1.0, "valid": 1.0})


def read_value(text: str) -> tuple[Any, str]:
    """The one JSON value of a text, or why there is none."""
    if len(text) > _LONGEST:
        return None, f"it is longer than {_LONGEST} characters"
    blocks = [block for block in blocks_of(text) if block.language in ("", "json", "jsonc", "json5") and block.closed]
    if len(blocks) > 1:
        return None, "there is more than one block"
    if blocks:
        around = text[: blocks[0].start] + text[blocks[0].end :]
        if _holds_container(around):
            return None, "there is a second value beside the block"
        text = blocks[0].text
    try:
        return json.loads(text.strip(), parse_constant=_refuse, object_pairs_hook=once), ""
    except RecursionError:
        return None, "it is nested too deeply"
    except ValueError as error:
        return None, f"it is no JSON value: {str(error)[:120]}"


def _holds_container(text: str) -> bool:
    """Whether an object or a list that is not empty stands somewhere in a text."""
    decoder = json.JSONDecoder()
    for place in [found.start() for found in re.finditer(r"[\[{]", text)][:200]:
        try:
            if decoder.raw_decode(text, place)[0]:
                return True
        except (ValueError, RecursionError):
            continue
    return False


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
