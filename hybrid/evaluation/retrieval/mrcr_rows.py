"""Rows of MRCR from files in the public form: `.parquet` or `.jsonl` of the same columns.

    prompt                     text: a JSON list of {"role", "content"}, user and assistant by turns
    answer                     text that begins with the random string
    random_string_to_prepend   text
    n_needles, desired_msg_index, total_messages, n_chars    whole numbers
    date_added                 text; may be missing in earlier revisions

pyarrow is loaded only where it reads Parquet.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybrid.config import ConfigError
from hybrid.data.sources import matches_of
from hybrid.evaluation.retrieval.conversation import Conversation

KEY = "eval.retrieval.mrcr_paths"
TEXTS = ("prompt", "answer", "random_string_to_prepend")
NUMBERS = ("n_needles", "desired_msg_index", "total_messages", "n_chars")


def read(patterns: Sequence[str]) -> Iterator[Conversation]:
    """The rows of the files that paths or globs name, in order.

    Raises: ConfigError for a missing file, and for a malformed row by its number and column.
    """
    for pattern in patterns:
        paths = [path for path in matches_of(pattern) if pathlib.Path(path).is_file()]
        if not paths:
            raise ConfigError(KEY, "no such file", pattern, "files or globs")
        for path in paths:
            for number, row in enumerate(_rows(pathlib.Path(path)), start=1):
                yield conversation(row, f"{path} row {number}")


def conversation(row: Any, place: str) -> Conversation:
    """The conversation of a row.  Raises: ConfigError that names `place` and the column."""
    if not isinstance(row, Mapping):
        raise ConfigError(KEY, f"{place} is not an object with columns", row)
    for kind, columns in ((str, TEXTS), (int, NUMBERS)):
        for column in columns:
            if column not in row:
                raise ConfigError(KEY, f"{place} lacks column {column}")
            if type(row[column]) is not kind:
                wanted = "text" if kind is str else "a whole number"
                raise _wrong(place, column, f"must be {wanted}", row[column])
            if kind is str:
                _check_encodes(place, column, row[column])
    random_string, answer = row["random_string_to_prepend"], row["answer"]
    if not random_string or not answer.startswith(random_string):
        raise _wrong(place, "answer", f"must begin with {random_string!r}", answer)
    if row["n_needles"] < 1:
        raise _wrong(place, "n_needles", "must be at least 1", row["n_needles"])
    turns = _turns(row["prompt"], place)
    if not 0 <= row["desired_msg_index"] < len(turns):
        problem = f"must be below the {len(turns)} messages"
        raise _wrong(place, "desired_msg_index", problem, row["desired_msg_index"])
    if row["desired_msg_index"] % 2 == 0:
        problem = "must be of a message of the assistant"
        raise _wrong(place, "desired_msg_index", problem, row["desired_msg_index"])
    return Conversation(turns, answer, random_string, row["n_needles"])


def _turns(prompt: str, place: str) -> tuple[str, ...]:
    """The texts of the messages.  Raises: ConfigError unless user and assistant alternate."""
    try:
        messages = json.loads(prompt)
    except (ValueError, RecursionError) as error:
        raise _wrong(place, "prompt", f"is not JSON ({error})", prompt) from None
    if not isinstance(messages, list) or len(messages) < 3 or len(messages) % 2 == 0:
        problem = "must be a list of messages, the user's first and last"
        raise _wrong(place, "prompt", problem, prompt)
    for index, message in enumerate(messages):
        role = ("user", "assistant")[index % 2]
        is_message = isinstance(message, dict) and isinstance(message.get("content"), str)
        if not is_message or message.get("role") != role:
            problem = f"message {index} must be of the {role} and hold a text"
            raise _wrong(place, "prompt", problem, message)
        _check_encodes(place, "prompt", message["content"])
    return tuple(message["content"] for message in messages)


def _check_encodes(place: str, column: str, text: str) -> None:
    """Raises: ConfigError for half a surrogate pair, which JSON can name and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"holds half a surrogate pair at character {error.start}"
        raise _wrong(place, column, problem, ascii(text[error.start])) from None


def _wrong(place: str, column: str, problem: str, got: Any) -> ConfigError:
    return ConfigError(KEY, f"{place} column {column}: {problem}", got)


def _rows(path: pathlib.Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    if path.suffix != ".jsonl":
        raise ConfigError(KEY, "has another ending", str(path), ".parquet or .jsonl")
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(KEY, f"can't be read ({error})", str(path)) from None
    for number, line in enumerate(filter(str.strip, lines), start=1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(KEY, f"{path} row {number} is not JSON ({error})") from None


def _parquet_rows(path: pathlib.Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            held = [name for name in (*TEXTS, *NUMBERS) if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=16, columns=held or None):
                yield from batch.to_pylist()
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise ConfigError(KEY, f"is no Parquet file ({error})", str(path)) from None
