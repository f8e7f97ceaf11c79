"""A run of seconds for tests of whole commands: a page, its text, and what a workdir holds then.

Three layers on generated text. Nothing here imports jax before it is called, so that a test may
start processes while it has none of its own.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
from typing import Any

import quick

from benchmarks.same_values import TIMES, arrays

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = """
from hybrid import experiment


def get_config(folder):
    config = experiment.defaults()
    config.model.pattern = "LG"
    config.model.num_layers = 4
    config.model.window_size = 8
    config.model.d_model = 32
    config.model.num_heads = 2
    config.model.head_dim = 16
    config.model.ffn_dim = 64
    config.data.source = "text"
    config.data.paths = (folder + "/text/*.txt",)
    config.data.cache_dir = folder + "/tokens"
    config.data.eval_fraction = 0.2
    config.training.num_steps = 12
    config.training.batch_size = 4
    config.training.context_length = 32
    config.training.peak_flops = -1.0
    config.training.tensorboard = False
    config.eval.every_steps = 4
    config.eval.batch_size = 4
    config.eval.max_tokens = 600
    config.checkpoint.every_steps = 4
    config.checkpoint.keep = 1
    return config
"""


def write_page(folder: pathlib.Path) -> str:
    """Writes page and text into `folder`; returns what `--config` takes."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 8))) for _ in range(200)]
    (folder / "text").mkdir()
    for number in range(40):
        text = " ".join(rng.choices(words, k=rng.randint(20, 400)))
        (folder / "text" / f"{number}.txt").write_text(text)
    (folder / "page.py").write_text(PAGE)
    return f"{folder / 'page.py'}:{folder}"


def environment(folder: pathlib.Path) -> dict[str, str]:
    """For processes of a run: all that is compiled is kept in `folder`, for the next start."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick.FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(folder: pathlib.Path, *words: object) -> subprocess.Popen:
    """Starts Python on `words`, output and errors in pipes as text."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen, seconds: float = 600) -> str:
    """Returns what the process said on standard error once it has ended; kills it if it hangs."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def finish(process: subprocess.Popen) -> str:
    """Returns what a process that succeeds said on standard error."""
    errors = wait(process)
    assert process.returncode == 0, errors
    return errors


def rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of metrics.jsonl, times and speeds left out."""
    return [without_times(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(text: str) -> Any:
    """What a JSON text holds, but for entries about time or speed."""

    def drop(entry: dict) -> dict:
        return {key: value for key, value in entry.items() if not any(t in key for t in TIMES)}

    return json.loads(text, object_hook=drop)


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """The steps that have a folder of their final name, in order."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def state_bytes(workdir: pathlib.Path, step: int) -> dict[str, bytes]:
    """Every array of a checkpoint (parameters, optimizer state, counters) as its bytes."""
    found = arrays(workdir / "checkpoints" / str(step))
    return {name: array.tobytes() for name, array in found.items()}
