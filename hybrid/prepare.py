"""`python -m hybrid.prepare`: a config's text as a store of tokens, opened at once."""

import functools
import pathlib
import sys
import time
from collections.abc import Callable

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.data import pipeline
from hybrid.data.store import manifest
from hybrid.data.store.build import SHARD_TOKENS
from hybrid.data.store.encode import num_cores
from hybrid.data.store.prepare import Progress, prepare
from hybrid.experiment import Experiment
from hybrid.process import cli, distributed
from hybrid.process.clock import clock
from hybrid.process.files import path_of

_SECONDS_BETWEEN_LINES = 5.0


def _run(arguments: cli.Arguments) -> None:
    distributed.refuse("prepare", arguments.overrides)
    page, output = arguments.require("config"), arguments.require("output")
    loaded = experiment.load(page, arguments.overrides)
    if loaded.data.mixture:
        problem = "has several texts, and a store holds one"
        names = [source.name for source in loaded.data.mixture]
        remedy = "prepare each source by itself, then name its store: 'source': 'prepared'"
        raise ConfigError("data.mixture", problem, names, remedy)
    folder, flags = path_of("--output", output), arguments.flags
    for name, given, least in (
        ("workers", flags.workers, -1),
        ("shard_tokens", flags.shard_tokens, 1),
    ):
        if given < least:
            raise ConfigError(f"--{name}", f"must be at least {least}", given)
    if flags.verify:
        store = manifest.read(folder, "--output")
        store.verify()
        print(f"whole: {folder}: {_counted(store.manifest)}")
        return
    encoder, _ = pipeline.encoder_of(loaded.data, loaded.model.vocab_size)
    made = prepare(
        loaded.data,
        encoder,
        folder,
        vocab_size=loaded.model.vocab_size,
        num_workers=num_cores() if flags.workers < 0 else flags.workers,
        shard_tokens=flags.shard_tokens,
        progress=_lines(),
    )
    print(f"written: {folder}: {_counted(made)}")


def _counted(made: manifest.Manifest) -> str:
    counts = (
        f"{split.total('num_tokens'):,} tokens of {split.total('num_documents'):,} documents in "
        f"{len(split.shards)} shard{'s' * (len(split.shards) != 1)} to {use}"
        for split, use in ((made.train, "train on"), (made.eval, "evaluate on"))
    )
    return ", ".join(counts)


def _lines() -> Callable[[Progress], None]:
    """Says how far it is, how fast it goes and how long it takes, every few seconds."""
    start = last = time.perf_counter()
    first: Progress | None = None

    def say(now: Progress) -> None:
        nonlocal last, first
        first = first or now
        seconds = time.perf_counter()
        if seconds - last < _SECONDS_BETWEEN_LINES or now.done == first.done:
            return
        last, spent = seconds, seconds - start
        share = now.done / max(now.total, 1)
        left = spent * (now.total - now.done) / (now.done - first.done)
        rate = now.num_bytes / 1e6 / spent
        print(
            f"preparing: {share:.0%}, {now.num_tokens / 1e6:.1f} million tokens of "
            f"{now.num_bytes / 1e6:.1f} MB of text, {rate:.1f} MB/s, {clock(left)} left",
            file=sys.stderr,
            flush=True,
        )

    return say


COMMAND = cli.Command(
    name="python -m hybrid.prepare",
    doc="""
Tokenizes the text of a config's data.* keys into a store, which data.source=prepared opens at once.
Stopped at any time, the same command goes on.
""",
    flags={
        "config": ("config page, PATH.py or PATH.py:ARG", pathlib.Path),
        "output": (
            "folder of the store, new or to go on with; gs://BUCKET/FOLDER too",
            cli.AnyPath,
        ),
        "verify": ("read every shard of a finished store and check it", False),
        "workers": ("processes that tokenize; 0: only this one; -1: as many as cores", -1),
        "shard_tokens": ("tokens to train on in a shard, before the next one begins", SHARD_TOKENS),
    },
    config_class=Experiment,
    run=_run,
)

main = functools.partial(cli.main, COMMAND)

if __name__ == "__main__":
    sys.exit(main())
