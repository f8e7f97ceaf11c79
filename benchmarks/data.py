"""Preparing a store, starting on it, and reading random rows, beside other containers.

python -m benchmarks.data                  --megabytes=20: a smaller corpus

`prepare` with all cores, a first and a second start on the same text without a store, memory of a
start at one and ten times the text, rows a second by one process, and what a random row costs in
other containers that hold the same tokens.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import corpus, machine
from hybrid.data import pipeline
from hybrid.data.config import DataConfig
from hybrid.data.store import manifest

ROOT = pathlib.Path(__file__).parents[1]
LENGTHS = (8192, 131_072)
_READS = 300


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the tables and writes `results/data.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=105.0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = run(pathlib.Path(folder), arguments.megabytes)
    print(markdown(result))
    print("written:", machine.save("data", result))


def run(folder: pathlib.Path, megabytes: float) -> dict[str, Any]:
    """All figures, with everything made in `folder`."""
    text, store = folder / "text", folder / "store"
    corpus.write(text, megabytes)
    seconds = _prepare(text, store, text)
    about = manifest.read(store, "").manifest
    num_bytes = about.train.total("num_bytes") + about.eval.total("num_bytes")
    direct = [_start("jsonl", text / "text-0.jsonl", text, folder) for _ in range(2)]
    many = folder / "many"
    many.mkdir()
    for number in range(10):
        os.link(text / "text-0.jsonl", many / f"{number}.jsonl")
    _prepare(many, folder / "store10", text)
    starts = [_start("prepared", each, text, folder) for each in (store, folder / "store10")]
    return {
        "machine": machine.describe(),
        "megabytes": num_bytes / 1e6,
        "tokens": about.train.total("num_tokens") + about.eval.total("num_tokens"),
        "prepare_seconds": seconds,
        "direct": direct,
        "prepared": starts,
        "rows": [_rows(folder / "store10", text, length) for length in LENGTHS],
        "containers": _containers(store, folder),
    }


def _prepare(text: pathlib.Path, store: pathlib.Path, tokenizer: pathlib.Path) -> float:
    begun = time.perf_counter()
    command = [sys.executable, "-m", "hybrid.prepare", "--config=configs/tiny.py"]
    command += ["--config.data.source=jsonl", f"--config.data.paths={text}/*.jsonl"]
    command += [f"--config.data.tokenizer={tokenizer}/tokenizer.json", f"--output={store}"]
    command += [f"--config.model.vocab_size={corpus.VOCAB_SIZE}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


_START = """
import json, sys, time
from hybrid.data import pipeline
from hybrid.data.config import DataConfig
source, path, tokenizer, cache, size = sys.argv[1:]
begun = time.perf_counter()
config = DataConfig(source=source, paths=(path,), tokenizer=tokenizer, cache_dir=cache)
held_out = pipeline.open_held_out(config, vocab_size=int(size))
rows = pipeline.open_rows(config, context_length=1024, seed=0, vocab_size=int(size))
rows.row(0)
seconds = time.perf_counter() - begun
about = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
peak = int(about["VmHWM"].split()[0]) / 1024
print(json.dumps({"seconds": seconds, "peak_megabytes": peak}))
"""


def _start(
    source: str, path: pathlib.Path, tokenizer: pathlib.Path, folder: pathlib.Path
) -> dict[str, float]:
    """Seconds until the first row is there, and the process's peak memory by then."""
    words = [source, path, tokenizer / "tokenizer.json", folder / "cache", corpus.VOCAB_SIZE]
    command = [sys.executable, "-c", _START, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _rows(store: pathlib.Path, tokenizer: pathlib.Path, length: int) -> dict[str, float]:
    """Shuffled rows a second by the reader's own threads: off the disk, and again."""
    config = DataConfig(
        source="prepared", paths=(str(store),), tokenizer=str(tokenizer / "tokenizer.json")
    )
    found: dict[str, float] = {"length": length}
    for name in ("cold", "warm"):
        if name == "cold":
            _forget(store)
        rows = pipeline.open_rows(
            config, context_length=length, seed=0, vocab_size=corpus.VOCAB_SIZE
        )
        count = min(rows.num_rows, 64 * 131_072 // length) // 4
        batches = rows.batches(0, 4)
        begun = time.perf_counter()
        for _ in range(count):
            next(batches)
        found[name] = 4 * count / (time.perf_counter() - begun)
        batches.close()
    return found


def _forget(folder: pathlib.Path) -> None:
    """Lets the kernel drop what it keeps of the files."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _containers(store: pathlib.Path, folder: pathlib.Path) -> list[dict[str, Any]]:
    """What a random row of 8192 tokens costs in each, in microseconds, and its size on disk."""
    import pyarrow
    import pyarrow.parquet
    from array_record.python import array_record_module

    held = manifest.read(store, "").shard("train", 0)
    tokens, length = held.tokens(0, held.num_tokens), 8192
    count = len(tokens) // length
    rows = tokens[: count * length].reshape(count, length)
    table = pyarrow.table({"tokens": pyarrow.array(list(rows))})
    with pyarrow.ipc.new_file(str(folder / "x.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=64)
    pyarrow.parquet.write_table(table, folder / "x.parquet", row_group_size=64)
    writer = array_record_module.ArrayRecordWriter(str(folder / "x.array_record"), "group_size:1")
    for row in rows:
        writer.write(row.tobytes())
    writer.close()
    np.save(folder / "x.npy", rows.reshape(-1))
    mapped = np.load(folder / "x.npy", mmap_mode="r")
    arrow = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / "x.arrow")))
    parquet = pyarrow.parquet.ParquetFile(folder / "x.parquet")
    records = array_record_module.ArrayRecordReader(str(folder / "x.array_record"))

    def of_arrow(n: int) -> np.ndarray:
        return arrow.get_batch(n // 64)["tokens"][n % 64].values.to_numpy()

    def of_parquet(n: int) -> np.ndarray:
        return parquet.read_row_group(n // 64)["tokens"][n % 64].values.to_numpy()

    readers = {
        "safetensors, checked by block": lambda n: held.tokens(n * length, (n + 1) * length),
        "plain array": lambda n: np.array(mapped[n * length : (n + 1) * length]),
        "Arrow": of_arrow,
        "ArrayRecord": lambda n: np.frombuffer(records.read([n])[0], tokens.dtype),
        "Parquet": of_parquet,
    }
    sizes = {
        "safetensors, checked by block": store / "train-00000.safetensors",
        "plain array": folder / "x.npy",
        "Arrow": folder / "x.arrow",
        "ArrayRecord": folder / "x.array_record",
        "Parquet": folder / "x.parquet",
    }
    places = np.random.default_rng(0).integers(0, count, _READS).tolist()
    found = []
    for name, read in readers.items():
        for place in places[:3]:
            np.testing.assert_array_equal(read(place), rows[place])
        begun = time.perf_counter()
        for place in places:
            read(place)
        micros = 1e6 * (time.perf_counter() - begun) / len(places)
        bytes_a_token = sizes[name].stat().st_size / len(tokens)
        found.append({"name": name, "microseconds": micros, "bytes_a_token": bytes_a_token})
    return found


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    rate = result["megabytes"] / result["prepare_seconds"]
    (first, second), (once, ten) = result["direct"], result["prepared"]
    figures = [
        ("prepared by all cores, start of the processes included", f"{rate:.1f} MB/s"),
        ("first start without a store", f"{first['seconds']:.1f} s"),
        ("second start without a store", f"{second['seconds']:.2f} s"),
        ("start on the store", f"{once['seconds']:.2f} s, {once['peak_megabytes']:.0f} MB"),
        ("start at ten times the text", f"{ten['seconds']:.2f} s, {ten['peak_megabytes']:.0f} MB"),
        *(
            (f"rows of {row['length']:,} a second, cold and warm",
             f"{row['cold']:,.0f}, {row['warm']:,.0f}")
            for row in result["rows"]
        ),
    ]  # fmt: skip
    containers = [
        (row["name"], f"{row['microseconds']:.0f}", f"{row['bytes_a_token']:.2f}")
        for row in result["containers"]
    ]
    caption = (
        f"{result['megabytes']:.0f} MB of text, {result['tokens'] / 1e6:.1f} million tokens of an "
        f"8K BPE. {machine.line(result['machine'])}."
    )
    header = ("a random row of 8192 tokens in", "microseconds", "bytes a token on disk")
    tables = machine.table(("", ""), figures), machine.table(header, containers)
    return "\n\n".join([*tables, caption])


if __name__ == "__main__":
    main()
