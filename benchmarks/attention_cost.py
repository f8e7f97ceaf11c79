"""Time and memory of a local layer against the length of the row: a doubling costs a doubling.

    python -m benchmarks.attention_cost         --quick: up to 16 384

Forward and backward of one whole local layer (window 512) of the benchmark model, with the
implementation that the door chooses and with the dense oracle, which stops at 4096: there its
scores alone take 0.25 GB. A global layer, chunked, stands beside it up to 16 384.
"""

import argparse
import dataclasses
from typing import Any

from benchmarks import layer, machine
from benchmarks.model import MODEL
from benchmarks.workers import readings
from hybrid.process.host import keep_freed_memory

WINDOW = 512
LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
# name -> (letter of the layer, forced implementation, longest row)
LAYERS = {
    "local": ("L", "auto", 65_536),
    "local, dense oracle": ("L", "reference", 4096),
    "global": ("G", "auto", 16_384),
}


def main(argv: list[str] | None = None) -> None:
    """Times the layers, prints the table and writes `results/attention_cost.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 16 384 tokens, once each")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    longest, count = (16_384, 1) if arguments.quick else (65_536, 3)
    result = {"machine": machine.describe(), "rows": run(longest, count)}
    print(markdown(result))
    print("written:", machine.save("attention_cost", result))


def run(longest: int, count: int) -> list[dict[str, Any]]:
    """A row for each layer and length."""
    rows = []
    for name, (letter, implementation, limit) in LAYERS.items():
        for length in LENGTHS:
            if length <= min(limit, longest):
                rows.append({"layer": name, "length": length})
                rows[-1] |= _measure(letter, implementation, length, count)
    return rows


def _measure(letter: str, implementation: str, length: int, count: int) -> dict[str, Any]:
    config = dataclasses.replace(MODEL, window_size=WINDOW, attention=implementation)
    measured = layer.compiled(config, letter, length)
    timed = readings(measured.run, count)
    return {
        "ms": 1e3 * min(seconds for seconds, _ in timed),
        "others": max(others for _, others in timed),
        "temporaries": measured.temporaries,
    }


def markdown(result: dict[str, Any]) -> str:
    """Milliseconds and temporaries with the factor that each doubling adds."""
    rows, before = [], {}
    for row in result["rows"]:
        name, length = row["layer"], row["length"]
        half = before.get((name, length // 2))
        factors = [""] * 2
        if half:
            factors = [f"{row[key] / half[key]:.2f}" for key in ("ms", "temporaries")]
        before[name, length] = row
        memory = f"{row['temporaries'] / 2**20:.0f}"
        rows.append((name, length, f"{row['ms']:.0f}", factors[0], memory, factors[1]))
    header = ("layer", "tokens", "ms", "× a doubling", "temporaries, MiB", "× a doubling")
    caption = (
        f"One layer of the benchmark model, window {WINDOW}, forward and backward, batch 1, "
        f"float32. {machine.line(result['machine'])}."
    )
    return machine.table(header, rows) + "\n\n" + caption


if __name__ == "__main__":
    main()
