"""Tokens a second of one layer of every mixer, forward and backward, beside a local layer.

    python -m benchmarks.mixers                 --quick: one round;  --only L M: some letters

Whole layers (norms, mixer, feed-forward) of the benchmark model with a window of 1024, every
mixer at its own defaults. Readings go round the letters in turn; the best quiet one counts.
"""

import argparse
import dataclasses
from typing import Any

from benchmarks import layer, machine
from benchmarks.model import MODEL
from benchmarks.workers import quiet, readings
from hybrid.model.mixers import MIXERS
from hybrid.model.mixers.attention import LOCAL
from hybrid.process.host import keep_freed_memory

WINDOW = 1024
LENGTHS = (2048, 16_384)


def main(argv: list[str] | None = None) -> None:
    """Times the layers, prints the table and writes `results/mixers.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round in place of five")
    parser.add_argument("--only", nargs="+", choices=list(MIXERS), default=list(MIXERS))
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    letters = [LOCAL.letter, *(name for name in arguments.only if name != LOCAL.letter)]
    result = {"machine": machine.describe(), "rows": run(letters, 1 if arguments.quick else 5)}
    print(markdown(result))
    print("written:", machine.save("mixers", result))


def run(letters: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each letter and length."""
    rows = []
    for length in LENGTHS:
        layers = {letter: _layer(letter, length) for letter in letters}
        taken: dict[str, list] = {letter: [] for letter in letters}
        for _ in range(rounds):
            for letter, (both_ways, _) in layers.items():
                taken[letter] += readings(both_ways, 1)
        for letter, (_, temporaries) in layers.items():
            best = min(quiet(taken[letter]) or [seconds for seconds, _ in taken[letter]])
            rows.append({"letter": letter, "length": length, "tokens_per_second": length / best})
            rows[-1] |= {"temporaries": temporaries, "readings": taken[letter]}
    return rows


def _layer(letter: str, length: int) -> layer.Layer:
    config = dataclasses.replace(
        MODEL, pattern=letter, num_layers=1, last_layer="any", window_size=WINDOW
    )
    return layer.compiled(config, letter, length)


def markdown(result: dict[str, Any]) -> str:
    """A row a letter: tokens a second, times the local layer's, and memory at each length."""
    by_key = {(row["letter"], row["length"]): row for row in result["rows"]}
    rows = []
    for letter in dict.fromkeys(row["letter"] for row in result["rows"]):
        cells = [letter, MIXERS[letter].title]
        for length in LENGTHS:
            row = by_key[letter, length]
            speed, local = (r["tokens_per_second"] for r in (row, by_key[LOCAL.letter, length]))
            memory = row["temporaries"] / 2**20
            cells += [f"{speed:,.0f}", f"{speed / local:.2f}", f"{memory:.0f}"]
        rows.append(cells)
    header = ["letter", "mixer"]
    for length in LENGTHS:
        header += [f"tokens/s at {length:,}", "of a local layer", "temporaries, MiB"]
    taken = [reading for row in result["rows"] for reading in row["readings"]]
    caption = (
        f"One layer of the benchmark model (d_model {MODEL.d_model}, ffn {MODEL.ffn_dim}, window "
        f"{WINDOW:,}), forward and backward, batch 1, float32. {machine.line(result['machine'])}; "
        f"{len(quiet(taken))} of {len(taken)} readings were quiet."
    )
    return machine.table(header, rows) + "\n\n" + caption


if __name__ == "__main__":
    main()
