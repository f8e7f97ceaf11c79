"""What of a row is the document's text."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from hybrid.config import ConfigError


class Content(NamedTuple):
    """A document's text, and which bytes [start, stop) of it are predicted; None: all."""

    text: bytes
    predicted: tuple[tuple[int, int], ...] | None = None


@runtime_checkable  # for the tests, which check types
class Form(Protocol):
    """Makes a document of a row's fields.

    Attributes:
      fields: the fields that it needs.
    """

    @property
    def fields(self) -> tuple[str, ...]: ...

    def content(self, values: Mapping[str, Any], where: str) -> Content:
        """Raises: ConfigError, `where` in it, for values that make no document."""


@dataclasses.dataclass(frozen=True)
class PlainText:
    """One field holds the text."""

    text_field: str

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.text_field,)

    def content(self, values: Mapping[str, Any], where: str) -> Content:
        return Content(encoded(values, self.text_field, "data.text_field", where))


def encoded(values: Mapping[str, Any], field: str, key: str, where: str) -> bytes:
    """The UTF-8 of a field's text.  Raises: ConfigError under `key` where there is none."""
    if field not in values:
        raise missing(field, values, key, where)
    if not isinstance(values[field], str):
        raise ConfigError(key, f"{where} holds no text there", values[field])
    try:
        return values[field].encode()
    except UnicodeEncodeError:
        problem = f"{where} holds half a surrogate pair, which is no Unicode text"
        raise ConfigError("data.paths", problem) from None


def missing(field: str, fields: Any, key: str, where: str) -> ConfigError:
    """The error for a field that is not among those of a row or table."""
    shown = ", ".join(fields) or "none"
    return ConfigError(key, f"{where} has no such field", field, f"its fields: {shown}")
