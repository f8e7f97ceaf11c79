"""`python -m hybrid.show_batch`: a packed row as training reads it, for eyes.

A line a place: its segment, its position, the token that is read and, where one is predicted, the
token that is to follow. In colours on a terminal (https://no-color.org is followed), elsewhere in
plain columns that say the same.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.data import pipeline, tokenizers
from hybrid.data.packing import Row
from hybrid.data.tokenizers import Tokenizer
from hybrid.experiment import Experiment
from hybrid.process import cli, distributed

_BEHIND = 8  # tokens that a token is decoded behind: a character may take several
_BYTE_NAMES = {
    tokenizers.BYTE_PAD: "<pad>",
    tokenizers.BYTE_BOS: "<bos>",
    tokenizers.BYTE_EOS: "<eos>",
}


@dataclasses.dataclass(frozen=True)
class Palette:
    """Codes of a terminal's colours; each is empty where there are none.

    Attributes:
      segments: taken in turn.
    """

    segments: tuple[str, ...] = ("",)
    predicted: str = ""
    context: str = ""
    end: str = ""

    @classmethod
    def of(cls, stream: Any) -> "Palette":
        """That of a stream: none in a file, a pipe, under NO_COLOR or in a terminal without."""
        has_none = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        if has_none or not stream.isatty():
            return cls()
        colours = ("\033[36m", "\033[33m", "\033[35m", "\033[34m")
        return cls(colours, "\033[1;32m", "\033[2m", "\033[0m")


def lines(
    row: Row, names: Sequence[str], texts: Sequence[str], targets: Sequence[str], palette: Palette
) -> Iterator[str]:
    """The row as lines of text.

    Args:
      row: by the fields of `Batch`, each [t].
      names: of its documents, in order; empty where they have none.
      texts, targets: how each input and target is written, t each.
    """
    segments, mask = row["segment_ids"], row["loss_mask"]
    num_places, num_real = len(segments), int((segments > 0).sum())
    counts = {
        "predicted": int(mask.sum()),
        "context": num_real - int((mask & (segments > 0)).sum()),
        "padding": num_places - num_real,
    }
    shares = (f"{count / num_places:.1%} {name} ({count:,})" for name, count in counts.items())
    yield f"{num_places:,} places: {', '.join(shares)}"
    yield from _documents(int(segments.max(initial=0)), names, palette)
    yield f"{palette.predicted}> TOKEN{palette.end}: predicted from there; .: nothing is"
    yield ""
    yield f"{'place':>7} {'segment':>7} {'position':>8} {'id':>7}  {'reads':<16} predicts"
    for place in range(num_real):
        segment = int(segments[place])
        about = f"{place:>7,} {segment:>7} {row['positions'][place]:>8,} {row['tokens'][place]:>7}"
        colour = _of_segment(segment, palette)
        if mask[place]:
            end = f"{palette.predicted}> {targets[place]}{palette.end}"
        else:
            end = f"{palette.context}.{palette.end}"
        yield f"{colour}{about}  {texts[place]:<16}{palette.end} {end}"
    if num_real < num_places:
        yield f"{num_real:>7,} {'-':>7} and on to {num_places - 1:,}: padding"


def _documents(num_segments: int, names: Sequence[str], palette: Palette) -> Iterator[str]:
    """Which document each segment is, or all of them where they share one."""
    if len(names) == num_segments:
        for segment, name in enumerate(names, start=1):
            yield f"{_of_segment(segment, palette)}segment {segment}{palette.end}: {name}"
    elif names:
        yield f"{num_segments} segment of {len(names)} documents: {', '.join(names)}"


def _of_segment(segment: int, palette: Palette) -> str:
    return palette.segments[(segment - 1) % len(palette.segments)]


def spelled(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """How each of the ids [t] is written: text in quotes, control tokens by their names.

    A character of several tokens stands at the last of them, and the others are empty.
    """
    is_byte = isinstance(tokenizer, tokenizers.ByteTokenizer)
    own = {index: text for text, index in tokenizer.control_tokens.items()}
    names = _BYTE_NAMES if is_byte else own
    found = []
    for place, token in enumerate(ids.tolist()):
        name = names.get(token)
        found.append(repr(_added(tokenizer, ids, place)) if name is None else name)
    return found


def _added(tokenizer: Tokenizer, ids: np.ndarray, place: int) -> str:
    """What a token adds to the text of those before it."""
    first = max(0, place - _BEHIND)
    before, text = (tokenizer.decode(ids[first:end]) for end in (place, place + 1))
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False))
    return text[len(list(pairs)) :].rstrip("\N{REPLACEMENT CHARACTER}")


def _run(arguments: cli.Arguments) -> None:
    distributed.refuse("show_batch", arguments.overrides)
    loaded = experiment.load(arguments.require("config"), arguments.overrides)
    number = arguments.flags.row
    if number < 0:
        raise ConfigError("--row", "must be at least 0", number)
    rows = pipeline.open_rows(
        loaded.data,
        context_length=loaded.training.context_length,
        seed=loaded.training.seed,
        vocab_size=loaded.model.vocab_size,
        batch_size=loaded.training.batch_size,  # a mixture's schedule is counted in steps
    )
    if rows.end is not None and number >= rows.end:
        raise ConfigError(
            "--row", "is behind the last row of the mixture", number, f"below {rows.end}"
        )
    row = rows.row(number)
    if loaded.data.is_task:
        texts, targets = (list(map(str, row[name].tolist())) for name in ("tokens", "targets"))
    else:
        tokenizer = tokenizers.load(loaded.data.tokenizer)
        ids = np.append(row["tokens"], row["targets"][-1:])  # each target is the next input
        written = spelled(tokenizer, ids)
        texts, targets = written[:-1], written[1:]
    print(rows.description)
    print(f"row {number:,} of the run, {rows.num_rows:,} an epoch, training.seed {rows.seed}")
    for line in lines(row, rows.names(number), texts, targets, Palette.of(sys.stdout)):
        print(line)


COMMAND = cli.Command(
    name="python -m hybrid.show_batch",
    doc="""
Prints a packed row of a config as training reads it: segments, positions, and what is predicted.
""",
    flags={
        "config": ("config page, PATH.py or PATH.py:ARG", pathlib.Path),
        "row": ("number of the row in the run, from 0", 0),
    },
    config_class=Experiment,
    run=_run,
)

main = functools.partial(cli.main, COMMAND)

if __name__ == "__main__":
    sys.exit(main())
