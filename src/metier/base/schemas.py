"""Validators of JSON schemas, drafts 7 and 2020-12, that never fetch anything."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

__all__ = ["BadSchemaError", "validator_of"]


class BadSchemaError(ValueError):
    """What is no schema, or refers to what is not in it."""


def validator_of(schema: dict[str, Any] | bool, *, formats: bool = False) -> jsonschema_rs.Validator:
    """The validator of a schema; `formats` makes `format` count. Raises `BadSchemaError`."""
    try:
        return jsonschema_rs.validator_for(schema, retriever=_fetch_nothing, validate_formats=formats)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, RecursionError) as error:
        raise BadSchemaError(str(error).splitlines()[0][:400]) from error


def _fetch_nothing(place: str) -> Any:
    raise ValueError(f"{place} is elsewhere, and nothing is fetched")
