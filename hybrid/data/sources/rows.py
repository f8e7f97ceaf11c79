"""What stands in one file: a document a file, a line or a row, by the kind of source.

Each reader gives the documents in order, with their places: 0 for a whole file, else lines or rows
from 1. Arrow reads parquet and what Hugging Face `datasets` saves.
Read next: `corpus.py`.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hybrid.config import ConfigError
from hybrid.data.sources.files import opened
from hybrid.data.sources.form import Content, Form, missing

Wanted = Callable[[int], bool]  # by place; what is not wanted is not looked at
_ROWS_AT_ONCE = 256


def read(kind: str, path: str, form: Form, wanted: Wanted) -> Iterator[tuple[int, Content]]:
    """The wanted documents of a file, each with its place.

    Raises: ConfigError naming file and place for what can't be read, while it is iterated.
    """
    return _READERS[kind](path, form, wanted)


def place_name(name: str, place: int) -> str:
    """Where a document came from, for messages: `FILE` or `FILE:LINE`."""
    return f"{name}:{place}" if place else name


def _whole(path: str, form: Form, wanted: Wanted) -> Iterator[tuple[int, Content]]:
    del form
    if wanted(0):
        with opened(path) as file:
            yield 0, Content(file.read())


def _lines(path: str, form: Form, wanted: Wanted) -> Iterator[tuple[int, Content]]:
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if wanted(number) and not line.isspace():
                where = f"{path} line {number}"
                yield number, form.content(_json_object(line, where), where)


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        shown = line.decode("utf-8", "replace").strip()[:60]
        raise ConfigError("data.paths", f"{where} is not JSON ({error})", shown) from None
    if not isinstance(value, dict):
        raise ConfigError("data.paths", f"{where} is not a JSON object", value, '{"text": …}')
    return value


def _parquet(path: str, form: Form, wanted: Wanted) -> Iterator[tuple[int, Content]]:
    import pyarrow.parquet

    with _arrow_errors(path, "parquet"), pyarrow.parquet.ParquetFile(path) as file:
        _check_columns(form, file.schema_arrow.names, path)
        batches = file.iter_batches(_ROWS_AT_ONCE, columns=list(form.fields))
        yield from _table_rows(batches, path, form, wanted)


def _arrow(path: str, form: Form, wanted: Wanted) -> Iterator[tuple[int, Content]]:
    import pyarrow

    with (
        _arrow_errors(path, "an Arrow stream"),
        pyarrow.memory_map(path) as file,
        pyarrow.ipc.open_stream(file) as stream,
    ):
        _check_columns(form, stream.schema.names, path)
        yield from _table_rows(stream, path, form, wanted)


def _table_rows(
    batches: Iterable[Any], path: str, form: Form, wanted: Wanted
) -> Iterator[tuple[int, Content]]:
    place = 0
    for batch in batches:
        places = range(place + 1, place + 1 + len(batch))
        place += len(batch)
        if any(map(wanted, places)):
            rows = batch.select(list(form.fields)).to_pylist()
            for number, values in zip(places, rows, strict=True):
                if wanted(number):
                    yield number, form.content(values, f"{path} row {number}")


def _check_columns(form: Form, names: list[str], path: str) -> None:
    for field, key in form.fields.items():
        if field not in names:
            raise missing(field, names, key, path)
        if names.count(field) > 1:
            raise ConfigError(key, f"{path} has several columns of the name", field)


@contextlib.contextmanager
def _arrow_errors(path: str, what: str) -> Iterator[None]:
    """Turns what Arrow says of a file into one line."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:150]
        raise ConfigError("data.paths", f"can't be read as {what} ({said})", path) from None


_READERS = {"text": _whole, "jsonl": _lines, "parquet": _parquet, "datasets": _arrow}
