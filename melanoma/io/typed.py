"""JSON files as dataclasses, read strictly: no unknown field, no missing one, no other type."""

import dataclasses
import json
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from melanoma.errors import UserError

T = TypeVar("T")


class Strict:
    """Base of the dataclasses that are read from files; pydantic reads the setting below."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


def from_json(
    kind: type[T], data: bytes | str, *, what: str, error: type[UserError], remedy: str
) -> T:
    """Read a dataclass from JSON.

    Args:
        kind: the dataclass.
        data: the JSON text.
        what: the file, for messages.
        error: raised with one sentence.
        remedy: the end of that sentence.
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
    """Return a dataclass as plain values for JSON, lists in place of tuples."""
    return json.loads(json.dumps(dataclasses.asdict(value)))
