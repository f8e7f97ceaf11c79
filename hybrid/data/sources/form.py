"""What of a row is the document's text."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from hybrid.config import ConfigError

Spans = tuple[tuple[int, int], ...]


class Content(NamedTuple):
    """What a document is made of.

    Attributes:
      predicted: which bytes [start, stop) of the text are predicted, and where one ends with the
        text, EOS; None: all.
      parsed: whether control tokens that the text spells are these tokens, not letters.
    """

    text: bytes
    predicted: Spans | None = None
    parsed: bool = False


@runtime_checkable  # for the tests, which check types
class Form(Protocol):
    """Makes a document of a row's fields.  Forms with the same `repr` make the same documents.

    Attributes:
      fields: the fields that it needs, and the key that names each.
    """

    @property
    def fields(self) -> Mapping[str, str]: ...

    def content(self, values: Mapping[str, Any], where: str) -> Content:
        """Raises: ConfigError, `where` in it, for values that make no document."""


@dataclasses.dataclass(frozen=True)
class PlainText:
    """One field holds the text."""

    text_field: str

    @property
    def fields(self) -> Mapping[str, str]:
        return {self.text_field: "data.text_field"}

    def content(self, values: Mapping[str, Any], where: str) -> Content:
        (text,) = texts(self, values, where)
        return Content(text)


def texts(form: Form, values: Mapping[str, Any], where: str) -> list[bytes]:
    """The UTF-8 of each of a form's fields.  Raises: ConfigError for one that holds no text."""
    for field, key in form.fields.items():
        if field not in values:
            raise missing(field, values, key, where)
        if not isinstance(values[field], str):
            raise ConfigError(key, f"{where} holds no text there", repr(values[field]))
    return [utf8(values[field], where) for field in form.fields]


def utf8(text: str, where: str) -> bytes:
    """The text's bytes.  Raises: ConfigError for what JSON can write and UTF-8 can not."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        problem = f"{where} holds half a surrogate pair, which is no Unicode text"
        raise ConfigError("data.paths", problem) from None


def missing(field: str, fields: Any, key: str, where: str) -> ConfigError:
    """The error for a field that is not among those of a row or table."""
    shown = ", ".join(fields) or "none"
    return ConfigError(key, f"{where} has no such field", field, f"its fields: {shown}")
