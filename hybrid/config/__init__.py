"""From values and overrides to frozen, checked dataclasses; it has no key of its own.

A section is a frozen dataclass whose fields are made by `key(default, doc, ...)`. At the door
stands ml_collections' ConfigDict, as pages write it; `build` turns it into dataclasses and
refuses unknown keys, wrong types and impossible values by their dotted key. Everything a user
can get wrong ends in one `ConfigError`, which the commands print as one line.

Read next: `pages.py` for where values come from, `model/config.py` for a section,
`experiment.py` for all of them together.
"""

import ast
import contextlib
import dataclasses
import difflib
import math
import operator
import os
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import ml_collections
import numpy as np

from hybrid.config.lists import split_list

MOST_SEED = 2**32 - 1  # jax.random.key(2**32) is key(0): beyond it two seeds would be alike


class ConfigError(ValueError):
    """One wrong key: prints as `KEY: what is wrong, got VALUE; what is accepted`."""

    def __init__(self, key: str, problem: str, got: Any = None, accepted: str = ""):
        self.key, self.problem, self.got, self.accepted = key, problem, got, accepted
        super().__init__(key, problem, got, accepted)

    def __str__(self) -> str:
        got = "" if self.got is None else f", got {_one_line(self.got)}"
        accepted = f"; {self.accepted}" if self.accepted else ""
        return " ".join(f"{self.key}: {self.problem}{got}{accepted}".split())

    def under(self, key: str) -> "ConfigError":
        """The same of another key."""
        return ConfigError(key, self.problem, self.got, self.accepted)


def _one_line(value: Any) -> str:
    try:
        text = " ".join(str(value).split()) if isinstance(value, str) else repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= 120 else text[:117] + "..."


# --- Declaring a section ---------------------------------------------------------------------


MOST_NAME = 255  # bytes of one name on a file system
_URL = re.compile(r"[a-z][a-z0-9]*://|(gs|gcs|s3):")  # how one begins, also without a slash
_SERVED_URL = re.compile(r"gs://[^/]+/+(?!(.*/)?\.\.(/|$))[^/]")
_MOST_FLOAT = float(np.finfo(np.float32).max)  # numbers become float32 somewhere

# A limit of a number: what is said of one beyond it, and which ones are.
_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "at_least": ("must be at least", operator.lt),
    "more_than": ("must be more than", operator.le),
    "at_most": ("must be at most", operator.gt),
}


def key(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    formerly: str = "",
    path: bool | str = False,
    **limits: float,
) -> Any:
    """A config key: a dataclass field with its meaning, and the values it may take.

    Args:
      formerly: the dotted name that an earlier version had for it.
      path: whether it names files or a folder (`opened_path`); `remote`: in an object store too.
      limits: `at_least`, `more_than` and `at_most`, also of each item of a list.
    """
    assert limits.keys() <= _LIMITS.keys()
    metadata = {"doc": doc, "choices": choices, "formerly": formerly, "path": path}
    return dataclasses.field(default=default, metadata={**metadata, "limits": limits})


def section(cls: type) -> Any:
    """A field that holds a whole section, built from the section's defaults."""
    return dataclasses.field(default_factory=cls)


@dataclasses.dataclass(frozen=True)
class OpenSection:
    """A section that takes further sections by name: those in its `SECTIONS`, at run time."""

    SECTIONS: ClassVar[dict[str, type]] = {}

    sections: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), kw_only=True)

    def section(self, name: str) -> Any:
        """The keys of a further section, at their defaults where none was given."""
        return dict(self.sections).get(name) or self.SECTIONS[name]()


@dataclasses.dataclass(frozen=True)
class KeyInfo:
    """One leaf of a config: its dotted name, type, default, meaning, former name and choices."""

    name: str
    type: Any
    default: Any
    doc: str
    formerly: str
    choices: tuple[str, ...]


def walk(cls: type, prefix: str = "") -> Iterator[KeyInfo]:
    """All leaf keys of a config class in declared order, sections opened."""
    for name, (kind, field) in _entries(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from walk(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            assert field is not None
            about = (field.metadata[part] for part in ("doc", "formerly", "choices"))
            yield KeyInfo(prefix + name, kind, field.default, *about)


def _entries(cls: type) -> dict[str, tuple[Any, dataclasses.Field | None]]:
    """Type and field of each key and section, the further ones (without a field) last."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: (hints[f.name], f) for f in dataclasses.fields(cls) if f.name != "sections"}
    return fields | {name: (kind, None) for name, kind in getattr(cls, "SECTIONS", {}).items()}


def defaults(cls: type) -> ml_collections.ConfigDict:
    """The ConfigDict of a config class with every key at its default, for pages to fill in."""
    # Types are checked by `build`, which names the key and also takes numpy's numbers.
    return ml_collections.ConfigDict(to_dict(cls()), type_safe=False)


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain nested dicts; tuples stay tuples."""
    return {
        name: _to_plain(config.section(name) if field is None else getattr(config, name))
        for name, (_, field) in _entries(type(config)).items()
    }


def _to_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_to_plain, value))
    return to_dict(value) if dataclasses.is_dataclass(value) else value


# --- From values to dataclasses --------------------------------------------------------------


def build(cls: type, values: Mapping[str, Any]) -> Any:
    """The frozen dataclass `cls` filled from nested `values`; what is left out has its default.

    Raises: ConfigError naming the dotted key.
    """
    return _build(cls, values, "", cls)


def _build(cls: type, values: Mapping[str, Any], prefix: str, root: type) -> Any:
    entries = _entries(cls)
    arguments: dict[str, Any] = {}
    further: dict[str, Any] = {}
    for name, value in values.items():
        if name not in entries:
            raise unknown_key(f"{prefix}{name}", root, prefix)
        kind, field = entries[name]
        if dataclasses.is_dataclass(kind):
            _check_section(prefix + name, value)
            inner = _build(typing.cast(type, kind), value, f"{prefix}{name}.", root)
            (further if field is None else arguments)[name] = inner
        else:
            with errors_under(prefix):
                arguments[name] = _checked(field, kind, value)
    # At its defaults a section is as if it were not given: configs that mean the same are equal.
    given = {name: own for name, own in further.items() if own != type(own)()}
    if given:
        arguments["sections"] = tuple(sorted(given.items()))
    with errors_under(prefix):
        return cls(**arguments)


def _check_section(name: str, value: Any) -> None:
    if not isinstance(value, Mapping | ml_collections.ConfigDict):
        raise ConfigError(name, "must be a section of keys", value)


@contextlib.contextmanager
def errors_under(prefix: str) -> Iterator[None]:
    """Puts `prefix` before the key of a ConfigError raised inside."""
    try:
        yield
    except ConfigError as error:
        raise error.under(prefix + error.key) from None


def unknown_key(name: str, root: type, section: str = "") -> ConfigError:
    """The error for a key that `root` lacks: its new name, or the nearest key of the section."""
    for info in walk(root):
        if info.formerly and name.endswith(info.formerly):
            return ConfigError(name, "unknown key", accepted=f"is now {info.name}")
    valid = [info.name for info in walk(root) if info.name.startswith(section)]
    leaves = {valid_name.rsplit(".", 1)[-1]: valid_name for valid_name in reversed(valid)}
    close = difflib.get_close_matches(name, valid, 1, 0.6) or [
        leaves[leaf] for leaf in difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, 1, 0.5)
    ]
    hint = f"did you mean {close[0]}?" if close else "valid keys: " + ", ".join(valid[:12])
    return ConfigError(name, "unknown key", accepted=hint)


def checked(cls: type, name: str, value: Any) -> Any:
    """`value` as the key `name` of the config class `cls` holds it.  Raises: ConfigError."""
    kind, field = _entries(cls)[name]
    return _checked(field, kind, value)


def _checked(field: Any, kind: Any, value: Any) -> Any:
    value = _as_type(field.name, kind, value)
    if field.metadata["path"]:
        is_list, remote = isinstance(value, tuple), field.metadata["path"] == "remote"
        items = value if is_list else [value]
        opened = tuple(opened_path(field.name, item, remote=remote) for item in items)
        value = opened if is_list else opened[0]
    choices, limits = field.metadata["choices"], field.metadata["limits"]
    for item in value if isinstance(value, tuple) else (value,):
        if choices and item not in choices:
            close = difflib.get_close_matches(str(item), choices, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            accepted = "one of " + ", ".join(choices) + hint
            raise ConfigError(field.name, "is not a known value", value, accepted)
        for name, limit in limits.items():
            problem, is_beyond = _LIMITS[name]
            if is_beyond(item, limit):
                raise ConfigError(field.name, f"{problem} {limit}", value)
    return value


def _as_type(name: str, kind: Any, value: Any) -> Any:
    """`value` as type `kind`; a list also accepts a single item, a float an int, Any anything."""
    value = _plain(value)
    if kind is Any:
        return value
    if typing.get_origin(kind) is tuple:
        return _as_tuple(name, kind, value)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < _MOST_FLOAT else math.inf
    if type(value) is not kind:
        raise ConfigError(name, f"must be {_type_name(kind)}", value)
    if kind is float and not abs(value) <= _MOST_FLOAT:
        raise ConfigError(name, "must be a finite number", value)
    if kind is int and not -(1 << 63) <= value < 1 << 63:
        raise ConfigError(name, "must fit in 64 bits", value)
    return value


def _plain(value: Any) -> Any:
    """Python's own numbers, texts and lists in place of numpy's, in lists and dicts too."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _as_tuple(name: str, kind: Any, value: Any) -> tuple:
    """A list of any length (`tuple[int, ...]`), or one value of each type (`tuple[float, int]`)."""
    items = typing.get_args(kind)
    if items[-1] is Ellipsis:
        values = value if isinstance(value, list | tuple) else [value]
        if dataclasses.is_dataclass(items[0]):
            return _as_sections(name, typing.cast(type, items[0]), values)
        return tuple(_as_type(name, items[0], x) for x in values)
    if not isinstance(value, list | tuple) or len(value) != len(items):
        raise ConfigError(name, f"must hold {_type_name(kind)}", value)
    return tuple(_as_type(name, item, x) for item, x in zip(items, value, strict=True))


def _as_sections(name: str, cls: type, values: Any) -> tuple:
    """A list of sections, built one by one; what is wrong in one is named `NAME[0].KEY`."""
    built = []
    for index, entry in enumerate(values):
        _check_section(f"{name}[{index}]", entry)
        with errors_under(f"{name}[{index}]."):
            built.append(build(cls, entry))
    return tuple(built)


def opened_path(name: str, text: str, *, remote: bool = False) -> str:
    """A path as the file system takes it: a leading `~` or `~user` is a home folder.

    Every flag and key that names files is read through this, and nothing else opens a `~`.
    Args:
      remote: whether `gs://BUCKET/FOLDER` is served, which stays as it is.
    Raises: ConfigError under `name` for what no file can be called, or a home that is unknown.
    """
    if _URL.match(text) and not (remote and _SERVED_URL.match(text)):
        accepted = "a path on this machine" + (" or gs://BUCKET/FOLDER" if remote else "")
        raise ConfigError(name, "is not served", text, accepted)
    path = os.path.expanduser(text)
    first, slash, _ = path.partition("/")
    if first == "~" or (first.startswith("~") and slash):
        raise ConfigError(name, "there is no such home folder", text, "a path without ~")
    try:
        longest = max(map(len, os.fsencode(path).split(b"/")))
    except UnicodeEncodeError:
        raise ConfigError(name, "holds half a surrogate pair", ascii(text)) from None
    if "\0" in path or longest > MOST_NAME:
        problem = "holds a NUL" if "\0" in path else f"has a name beyond {MOST_NAME} bytes"
        raise ConfigError(name, problem, ascii(text))
    return path


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        if items[-1] is Ellipsis:
            if dataclasses.is_dataclass(items[0]):
                return "a list of sections, {'KEY': VALUE, …}"
            nested = typing.get_origin(items[0]) is tuple
            return f"a list of {_type_name(items[0]) if nested else items[0].__name__}"
        return "(" + ", ".join(item.__name__ for item in items) + ")"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return names.get(kind, "a Python literal")


# --- Overrides as text -----------------------------------------------------------------------


def parse_overrides(cls: type, overrides: Mapping[str, str]) -> dict[str, Any]:
    """Texts of `--config.KEY=VALUE` as values of the key's type, by dotted key."""
    kinds = {info.name: info.type for info in walk(cls)}
    values = {}
    for name, text in overrides.items():
        if name not in kinds:
            raise unknown_key(name, cls)
        values[name] = _parse(name, kinds[name], text)
    return values


def _parse(name: str, kind: Any, text: str) -> Any:
    if kind is str:
        return text
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if dataclasses.is_dataclass(item):
            return _literal(name, kind, text)  # `build` makes sections of it
        if typing.get_origin(item) is tuple:
            return _as_type(name, kind, _literal(name, kind, text))
        return tuple(_parse(name, item, part) for part in split_list(text))
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return _as_type(name, kind, _literal(name, kind, text))


def _literal(name: str, kind: Any, text: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in a text
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ConfigError(name, f"must be {_type_name(kind)}", text) from None


def updated(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `values` with the dotted `overrides` set; the input is left alone.

    Raises: ConfigError for an override within what is no section.
    """
    result = {k: updated(v, {}) if isinstance(v, Mapping) else v for k, v in values.items()}
    for name, value in overrides.items():
        *path, leaf = name.split(".")
        node = result
        for depth, part in enumerate(path, start=1):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(".".join(path[:depth]), "must be a section of keys", node)
        node[leaf] = value
    return result


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested `values` by dotted key."""
    flat = {}
    for name, value in values.items():
        inner = isinstance(value, Mapping)
        flat.update(flatten(value, f"{prefix}{name}.") if inner else {prefix + name: value})
    return flat
