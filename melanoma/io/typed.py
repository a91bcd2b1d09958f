"""Reads JSON files as dataclasses, strictly: no unknown field, no missing one, no other type."""

import dataclasses
import json
import math
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from melanoma.errors import UserError

T = TypeVar("T")


class Strict:
    """Base of the dataclasses that are read from files.

    pydantic reads `__pydantic_config__`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


def from_json(
    kind: type[T], data: bytes | str, *, what: str, error: type[UserError], remedy: str
) -> T:
    """Read a dataclass from JSON.

    Args:
        kind: the dataclass.
        data: the JSON text.
        what: the file, for messages.
        error: the class of the error to raise.
        remedy: the last sentence of its message.

    Raises:
        UserError: an ``error``, if the JSON does not fit the dataclass.
    """
    try:
        value: T = TypeAdapter(kind).validate_json(data)
    except ValidationError as found:
        first = found.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise error(
            f"{what} is damaged{f' at {where}' if where else ''}: {first['msg']}. {remedy}"
        ) from found
    return value


def to_plain(value: Any) -> Any:
    """Return a dataclass as plain values for JSON, with lists instead of tuples."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None, for undefined numbers."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
