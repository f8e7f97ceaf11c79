"""The text that needles hide in: a few short sentences repeated, or running text at hand.

The published haystack of the `essay` tasks is a collection of essays that is not ours to ship. Here
it is the text of `data.paths`, and where that is no running text of one source (code, a task, a
mixture, a prepared store, whose tokens are all there is) what a Python installation carries: the
docstrings of its standard library, cut into sentences. Scores on it do not compare to published
ones to the last point, and results name it.

Read next: `niah.py`.
"""

import ast
import functools
import re
import warnings
from collections.abc import Iterator, Sequence

from hybrid.config import ConfigError
from hybrid.data import sources
from hybrid.data.config import WITHOUT_PATHS, DataConfig

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
LEAST_CHARACTERS = 1_000_000  # of an essay before it is repeated, where there is as much
# A sentence ends at its sign before white space and what may begin another.
_ENDS = re.compile(r"""(?<=[.!?])\s+(?=["'(\[]?[A-Z0-9])""")


@functools.lru_cache(maxsize=4)
def essay(config: DataConfig) -> tuple[str, ...]:
    """The sentences of the running text at hand, in a fixed order.

    Raises: ConfigError for files that can't be read, or hold no text.
    """
    found: list[str] = []
    left = LEAST_CHARACTERS
    for text in _texts(config):
        found += sentences(text)
        left -= len(text)
        if left <= 0:
            break
    if not found:
        raise ConfigError("data.paths", "hold no text to hide needles in", list(config.paths))
    return tuple(found)


def name(config: DataConfig) -> str:
    """What the essay is, for results: it decides the scores."""
    documents = _documents(config)
    kind = "text" if _has_prose(config) else "docstrings"
    return f"{kind} of {documents.origin}, fingerprint {documents.fingerprint[:12]}"


def _has_prose(config: DataConfig) -> bool:
    """Whether the source is read as it is: code is not, a task and a store have no text."""
    return config.source not in (*WITHOUT_PATHS, "prepared") and not config.mixture


def _documents(config: DataConfig) -> sources.Documents:
    return sources.documents(config if _has_prose(config) else DataConfig(), "all")


def _texts(config: DataConfig) -> Iterator[str]:
    documents = _documents(config)
    if _has_prose(config):
        yield from (document.text.decode("utf-8", "replace") for document in documents)
        return
    for document in sorted(documents, key=lambda document: sources.digest_of(document.text)):
        yield " ".join(docstrings(document.text))


def docstrings(code: bytes) -> Iterator[str]:
    """The docstrings of a Python file, without examples; none of a file that does not parse."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in old code
            tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            paragraphs = (ast.get_docstring(node) or "").split("\n\n")
            yield from (part for part in paragraphs if ">>>" not in part)


def sentences(text: str) -> list[str]:
    """The sentences of a text, white space evened out."""
    return [part for part in _ENDS.split(" ".join(text.split())) if part]


def first(lines: Sequence[str], count: int) -> list[str]:
    """The first `count` lines, repeated from the beginning where they are too few."""
    repeats = -(-count // max(len(lines), 1))
    return (list(lines) * repeats)[:count]
