"""Where text comes from: three sources, one sequence of documents, one fingerprint.

A document is a name and its bytes. `documents` lists them with a hash each, which costs one
read of every file; the texts themselves are read again when they are needed, so a corpus
never has to fit in memory. Everything a user can get wrong about files is refused here.

The hash of a document decides its split (below `data.eval_fraction` of the range: held out),
so a document stays where it is when others come and go, and copies of a text fall together.
A text that stands alone is cut in two instead, and its end is held out.
The fingerprint is a hash over the sorted hashes: the same text in other files or another
order has the same one.

Documents without any text are counted and left out. What `stdlib` leaves out is said at
`_stdlib_files`.
Read next: `tokenizers.py`.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import math
import os
import pathlib
import platform
import re
import sysconfig
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from hybrid.config import ConfigError
from hybrid.data.config import DataConfig


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it came from, for messages: `FILE` or `FILE:LINE`, from byte `start` on."""

    name: str
    text: bytes
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Reference:
    """A document that is known but not held: enough to read it again and to notice a change."""

    name: str
    path: str
    digest: bytes
    num_bytes: int
    offset: int = -1  # where its line starts; -1: the whole file
    text_field: str = ""
    span: tuple[int, int | None] = (0, None)  # which bytes of that text it is

    def read(self) -> Document:
        """Raises: ConfigError when the file is gone or is no longer what was listed."""
        if self.offset < 0:
            text = _read_file(self.path)
        else:
            with _opened(self.path) as file:
                file.seek(self.offset)
                text = _line_text(self.name, file.readline(), self.text_field)
        text = text[slice(*self.span)]
        if _digest(text) != self.digest:
            raise ConfigError("data.paths", f"{self.name} changed while it was being read")
        return Document(self.name, text, self.span[0])

    def part(self, text: bytes, start: int, stop: int) -> "Reference":
        """The bytes [start, stop) of its `text` as a document of their own."""
        part = text[start:stop]
        return dataclasses.replace(
            self, digest=_digest(part), num_bytes=len(part), span=(start, stop)
        )


@dataclasses.dataclass(frozen=True)
class Documents:
    """The documents of one split, read one by one as they are iterated.

    Attributes:
      references: the documents without their text, in the order of the source.
      origin: what they are, for people: `stdlib of Python 3.11.7`.
      held_out_below: of a split by hash, the hash that parts it; None where files do.
      corpus: the fingerprint of all of `data.paths`, this split and the others.
      num_empty: how many documents without any text were left out.
      no_files: what a glob found that is neither file nor folder, as a link that leads nowhere.
    """

    references: tuple[Reference, ...]
    origin: str
    held_out_below: bytes | None = None
    corpus: str = ""
    num_empty: int = 0
    no_files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.references)

    def __iter__(self) -> Iterator[Document]:
        return (reference.read() for reference in self.references)

    @functools.cached_property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(reference.num_bytes for reference in self.references)

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hex digits that depend on the texts alone, not on names or order."""
        return _digest(b"".join(sorted(r.digest for r in self.references))).hex()

    @functools.cached_property
    def by_hash(self) -> "Documents":
        """The same documents in the order of their hashes: mixed, and the same everywhere."""
        ordered = tuple(sorted(self.references, key=lambda r: r.digest))
        return dataclasses.replace(self, references=ordered)

    @property
    def description(self) -> str:
        """One line for a log: origin, number of documents, size and fingerprint."""
        size, short = self.num_bytes / 1e6, self.fingerprint[:12]
        counted = f"{len(self):,} documents" if len(self) > 1 else "1 document"
        line = f"{self.origin}: {counted}, {size:.2f} MB, fingerprint {short}"
        if self.num_empty:
            line += f", {self.num_empty:,} without text left out"
        if self.no_files:
            more = f" and {len(self.no_files) - 3:,} more" * (len(self.no_files) > 3)
            line += f", no file: {', '.join(self.no_files[:3])}{more}"
        return line


def documents(
    config: DataConfig, split: str = "train", held_out_below: bytes | None = None
) -> Documents:
    """The documents of a split.

    `train` and `eval` share the documents of `data.paths` by hash, at least one each, or the one
    text that is there, unless `data.eval_paths` names the evaluation text: then `train` is
    everything in `data.paths`.  `all` is everything in `data.paths`.

    held_out_below: the hash that parted the documents of a run, whatever has come since.
    Raises: ConfigError for files that are missing, unreadable, malformed or too short.
    """
    if split == "eval" and config.eval_paths:
        source = "jsonl" if config.source == "jsonl" else "text"
        return _listed(source, config.eval_paths, config.text_field, "data.eval_paths")
    if config.source == "stdlib":
        everything = _stdlib()
    else:
        everything = _listed(config.source, config.paths, config.text_field, "data.paths")
    everything = dataclasses.replace(everything, corpus=everything.fingerprint)
    if split == "all" or (split == "train" and config.eval_paths):
        return everything
    if split not in ("train", "eval"):
        raise ValueError(f"split: train, eval or all, got {split!r}")
    is_one = len({reference.digest for reference in everything.references}) == 1
    if is_one and held_out_below is None:
        return _part_of_one(everything, config.eval_fraction, split)
    threshold = held_out_below or _threshold(everything.references, config.eval_fraction)
    keep = tuple(r for r in everything.references if (r.digest < threshold) == (split == "eval"))
    if not keep:
        problem = f"nothing is left of the {len(everything)} documents for the run's {split} split"
        raise ConfigError("data.paths", problem, list(config.paths) or config.source)
    origin = f"{everything.origin} ({split})"
    return dataclasses.replace(everything, references=keep, origin=origin, held_out_below=threshold)


def _threshold(references: Sequence[Reference], fraction: float) -> bytes:
    """The hash below which documents are held out: at least one of them, never all."""
    ordered = sorted({reference.digest for reference in references})
    nominal = math.ceil(fraction * 2.0**64).to_bytes(8, "big")
    below = sum(digest < nominal for digest in ordered)
    number = min(max(below, 1), len(ordered) - 1)
    return nominal if number == below else ordered[number]


def _part_of_one(everything: Documents, fraction: float, split: str) -> Documents:
    """Of the one text that is there (and its copies) the end is held out, the rest is trained on.

    Raises: ConfigError for a text too short to cut.
    """
    text = everything.references[0].read().text
    cut = end_of_training(text, fraction)
    if not cut:
        remedy = "name files in data.eval_paths, or give more text"
        problem = "nothing is left to hold out for evaluation"
        raise ConfigError("data.eval_paths", problem, f"{len(text)} bytes of text", remedy)
    start, stop = (cut, len(text)) if split == "eval" else (0, cut)
    parts = tuple(reference.part(text, start, stop) for reference in everything.references)
    shown = "the last" if split == "eval" else "without the last"
    origin = f"{everything.origin} ({split}: {shown} {len(text) - cut:,} bytes of the one document)"
    return dataclasses.replace(everything, references=parts, origin=origin)


def end_of_training(text: bytes, fraction: float) -> int:
    """Where the held-out end of a text begins: behind a line's end near there, else a character.

    About `fraction` of the text is held out, at most twice as much; 0 for a text of one character.
    """
    size = min(max(round(fraction * len(text)), 1), len(text) - 1)
    goal = len(text) - size
    line = text.rfind(b"\n", max(goal - size, 0), goal) + 1
    if line:
        return line
    # Bytes 10xxxxxx go on with a character, at most three of them in UTF-8.
    near = sorted(range(goal - 3, goal + 4), key=lambda place: abs(place - goal))
    inside = (place for place in near if 0 < place < len(text))
    begin = next((place for place in inside if text[place] & 0xC0 != 0x80), 0)
    return begin or (goal if len(text) > 4 else 0)


# --- stdlib ----------------------------------------------------------------------------------

_LEFT_OUT_FOLDERS = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")
)
# How the library's own generators sign, within the first lines of what they write.
_GENERATED = re.compile(
    rb"auto-?generated|automatically generated|generated and used by|do not edit"
    rb"|generated (?:by|from) [^\n]*(?:gencodec|\.py\b|\.txt\b|\.xml\b)",
    re.IGNORECASE,
)
_SIGNATURE_BYTES = 1000


@functools.cache
def _stdlib() -> Documents:
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    references: dict[bytes, Reference] = {}
    for path in _stdlib_files(root):
        name = path.relative_to(root).as_posix()
        text = _read_file(str(path))
        if text and not _GENERATED.search(text[:_SIGNATURE_BYTES]):
            reference = _reference(name, str(path), text)
            references.setdefault(reference.digest, reference)
    if len(references) < 2:
        problem = f"this Python has no library sources in {root}"
        raise ConfigError("data.source", problem, "stdlib", "text or jsonl")
    origin = f"stdlib of Python {platform.python_version()}"
    return Documents(tuple(references.values()), origin)


def _stdlib_files(root: pathlib.Path) -> list[pathlib.Path]:
    """The library's Python files, sorted; without tests and installed packages.

    The caller also leaves out copies (same bytes) and generated files: those whose first
    `_SIGNATURE_BYTES` say so, such as `pydoc_data/topics.py`, most tables in `encodings/`,
    `token.py` and the build's `_sysconfigdata`.
    """
    files = (p for p in root.rglob("*.py") if p.is_file())
    kept = (p for p in files if not _LEFT_OUT_FOLDERS & set(p.relative_to(root).parts[:-1]))
    return sorted(kept, key=lambda path: path.relative_to(root).as_posix())


# --- text and jsonl --------------------------------------------------------------------------


def _listed(source: str, patterns: Sequence[str], text_field: str, config_key: str) -> Documents:
    """The documents of the files that `patterns` name, in that order, each file once."""
    references: list[Reference] = []
    try:
        files, no_files = _expand(patterns, config_key)
        for path in files:
            if source == "text":
                references.append(_reference(path, path, _read_file(path)))
            else:
                references += _line_references(path, text_field)
    except ConfigError as error:
        config_key = config_key if error.key == "data.paths" else error.key
        raise ConfigError(config_key, error.problem, error.got, error.accepted) from None
    with_text = tuple(reference for reference in references if reference.num_bytes)
    if not with_text:
        raise ConfigError(config_key, "no text in these files", list(patterns))
    num_empty = len(references) - len(with_text)
    return Documents(with_text, source, num_empty=num_empty, no_files=tuple(no_files))


def _expand(patterns: Sequence[str], config_key: str) -> tuple[list[str], list[str]]:
    """The files of paths and globs, and what else they name that is no folder.

    A glob's files are sorted, and a file is there once however it is spelled. What exists under
    the very name that is given is no glob.
    Raises: ConfigError for a pattern without a file.
    """
    files: dict[str, str] = {}  # by real path
    others: dict[str, None] = {}
    for pattern in patterns:
        matches = matches_of(pattern)
        matched = [match for match in matches if os.path.isfile(match)]
        if not matched:
            raise _no_file(pattern, matches, config_key)
        for match in matched:
            files.setdefault(os.path.realpath(match), match)
        no_files = (m for m in matches if not os.path.isfile(m) and not os.path.isdir(m))
        others.update(dict.fromkeys(no_files))
    return list(files.values()), list(others)


def matches_of(pattern: str) -> list[str]:
    """What a path or glob names; folders that exist as they are spelled stay so, `[ ]` or not."""
    return [pattern] if os.path.lexists(pattern) else sorted(_glob(pattern))


def names_something(pattern: str) -> bool:
    """Whether `matches_of` would be any; the walk ends at the first."""
    return os.path.lexists(pattern) or next(_glob(pattern), None) is not None


def _glob(pattern: str) -> Iterator[str]:
    ends = [place for place, c in enumerate(pattern) if c == "/" and os.path.isdir(pattern[:place])]
    literal = pattern[: max(ends, default=0)]
    return glob.iglob(glob.escape(literal) + pattern[len(literal) :], recursive=True)


def _no_file(pattern: str, matches: Sequence[str], config_key: str) -> ConfigError:
    """The error for a pattern that names no file, by what it names instead."""
    remedy = "files or globs"
    if any(map(os.path.isdir, matches)):
        folder = f"{pattern.rstrip('/')}/**/*"
        return ConfigError(config_key, "is a folder", pattern, f"{remedy}, such as {folder}")
    if matches:
        nowhere = os.path.islink(matches[0])
        problem = "is a link that leads nowhere" if nowhere else "is no regular file"
        return ConfigError(config_key, problem, matches[0], remedy)
    if "[" in pattern:
        remedy += ", in which [ ] hold characters to choose from ([[] is a bracket itself)"
    return ConfigError(config_key, "no such file", pattern, remedy)


def _reference(name: str, path: str, text: bytes, *line: Any) -> Reference:
    return Reference(name, path, _digest(text), len(text), *line)


def _line_references(path: str, text_field: str) -> Iterator[Reference]:
    """A reference for each line but blank ones."""
    offset = 0
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            name = f"{path}:{number}"
            if line.strip():
                text = _line_text(name, line, text_field)
                yield _reference(name, path, text, offset, text_field)
            offset += len(line)
    if not offset:
        raise ConfigError("data.paths", f"{path} line 1: the file is empty", accepted="JSON lines")


def _line_text(name: str, line: bytes, text_field: str) -> bytes:
    """The text of one JSON line.  Raises: ConfigError naming the line."""
    path, _, number = name.rpartition(":")
    where = f"{path} line {number}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        shown = line.decode("utf-8", "replace").strip()[:60]
        raise ConfigError("data.paths", f"{where} is not JSON ({error})", shown) from None
    if not isinstance(value, dict):
        raise ConfigError("data.paths", f"{where} is not a JSON object", value, '{"text": …}')
    if text_field not in value:
        fields = ", ".join(value) or "none"
        problem = f"{where} has no such field"
        raise ConfigError("data.text_field", problem, text_field, f"its fields: {fields}")
    if not isinstance(value[text_field], str):
        raise ConfigError("data.text_field", f"{where} holds no text there", value[text_field])
    try:
        return value[text_field].encode()
    except UnicodeEncodeError:
        problem = f"{where} holds half a surrogate pair, which is no Unicode text"
        raise ConfigError("data.paths", problem) from None


def _read_file(path: str) -> bytes:
    with _opened(path) as file:
        return file.read()


# How files of gzip, zstd, bzip2 and xz begin, and how their names end.
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|\x28\xb5\x2f\xfd|BZh[1-9]1AY&SY|\xfd7zXZ\0")
_COMPRESSED_NAMES = (".gz", ".zst", ".bz2", ".xz")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """The file, open to read bytes.  Raises: ConfigError where that fails or would be no text."""
    try:
        with open(path, "rb") as file:
            begins = _COMPRESSED.match(file.read(10))
            if begins or path.lower().endswith(_COMPRESSED_NAMES):
                raise ConfigError("data.paths", "is compressed", path, "unpack it first")
            file.seek(0)
            yield file
    except OSError as error:
        raise ConfigError("data.paths", f"can't be read ({error.strerror})", path) from None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
