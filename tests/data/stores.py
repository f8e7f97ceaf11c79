"""A small text in files, the stores made of it, and their rows."""

import gzip
import json

from hybrid.data import pipeline
from hybrid.data.config import DataConfig
from hybrid.data.store.encode import Encoder
from hybrid.data.store.prepare import prepare
from hybrid.data.tokenizers import ByteTokenizer

ENCODER = Encoder(ByteTokenizer(), 257, 258)
TEXTS = [f"text {i}: ".encode() + bytes([97 + i % 26]) * (40 + 7 * i % 90) for i in range(120)]


def source(folder):
    """Writes 120 lines in three files, one of them compressed."""
    lines = [json.dumps({"text": text.decode()}) + "\n" for text in TEXTS]
    (folder / "a.jsonl").write_text("".join(lines[:50]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[50:80]).encode(), mtime=0))
    (folder / "c.jsonl").write_text("".join(lines[80:]) + "\n" + json.dumps({"text": ""}))
    return DataConfig(source="jsonl", paths=(str(folder),), eval_fraction=0.2)


def make(config, folder, **keys):
    keys = {"vocab_size": 259, "num_workers": 0, "shard_tokens": 1500, **keys}
    return prepare(config, ENCODER, folder, **keys)


def of_store(folder, **keys):
    return DataConfig(source="prepared", paths=(str(folder),), **keys)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def open_rows(config, **keys):
    return pipeline.open_rows(config, **{"context_length": 32, "seed": 0, "vocab_size": 259} | keys)
