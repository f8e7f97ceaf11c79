"""A run of two layers on a few kilobytes of text, for tests of the loop."""

import dataclasses
import json
import pathlib

import numpy as np

from hybrid import experiment
from hybrid.config import updated


def write_texts(folder: pathlib.Path, num_documents: int = 24) -> str:
    """Writes documents of random words and returns the glob that finds them."""
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "one", "two", "three"]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num_documents):
        text = " ".join(rng.choice(words, size=int(rng.integers(20, 60))))
        (folder / f"{i}.txt").write_text(text)
    return str(folder / "*.txt")


def experiment_of(folder: pathlib.Path, **overrides) -> experiment.Experiment:
    """A tiny experiment on texts in `folder`; overrides by dotted key with __ for the dot."""
    values = experiment.defaults().to_dict()
    values = updated(
        values,
        {
            "model.pattern": "LG",
            "model.num_layers": 2,
            "model.window_size": 8,
            "model.d_model": 16,
            "model.num_heads": 2,
            "model.head_dim": 8,
            "model.ffn_dim": 24,
            "data.source": "text",
            "data.paths": (write_texts(folder / "texts"),),
            "data.eval_fraction": 0.2,
            "data.cache_dir": str(folder / "cache"),
            "training.num_steps": 6,
            "training.batch_size": 4,
            "training.context_length": 32,
            "training.tensorboard": False,
            "training.peak_flops": 1e12,
            "optimizer.warmup_fraction": 0.0,
            "eval.every_steps": 3,
            "eval.max_tokens": 200,
            "checkpoint.every_steps": 2,
            **{name.replace("__", "."): value for name, value in overrides.items()},
        },
    )
    return experiment.from_config(values)


def with_key(config: experiment.Experiment, section: str, **keys) -> experiment.Experiment:
    """The experiment with some keys of a section replaced."""
    changed = dataclasses.replace(getattr(config, section), **keys)
    return dataclasses.replace(config, **{section: changed})


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl without what tells of time."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    timely = ("second", "time", "mfu")
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if not any(t in name for t in timely)
        }
        for line in lines
    ]


def snapshot(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with its time of change and content."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
