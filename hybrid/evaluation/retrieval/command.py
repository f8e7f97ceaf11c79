"""`eval.py` where `eval.retrieval.tasks` are set: replies of a model to prompts, scored.

Everything that can be wrong is refused before the model is read: a prompt of each task is made, at
its shortest length.
With `--output`, samples are kept beside it as they are scored, so the same command goes on with a
run that was stopped.
Read first: `../target.py` (which model and config count), `benchmark.py`, `run.py`.
"""

import hashlib
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from hybrid import config as config_lib
from hybrid import pretrained
from hybrid.data import sources, tokenizers
from hybrid.evaluation.config import RetrievalConfig
from hybrid.evaluation.retrieval import haystack, prompts, report, result
from hybrid.evaluation.retrieval.benchmark import Benchmark, benchmark
from hybrid.evaluation.retrieval.run import Replier, run
from hybrid.evaluation.retrieval.sample import FORMAT
from hybrid.evaluation.retrieval.sample_log import SampleLog, path_beside
from hybrid.evaluation.target import Target
from hybrid.inference.session import Session
from hybrid.origin import base_folder
from hybrid.process import compiler, distributed
from hybrid.process.clock import clock
from hybrid.process.files import write_json
from hybrid.process.remote import AnyPath
from hybrid.sharding import make_mesh
from hybrid.workdir import checkpoint, checksums

SECONDS_BETWEEN_LINES = 5.0
# Keys that add samples or take some away, but change none.
_FREE = ("tasks", "lengths", "depths", "num_samples", "num_needles")


def evaluate(target: Target, output: AnyPath | None) -> None:
    """Prints the tables of a target, and writes its result to `output` and beside it.

    Raises: ConfigError by key for a task that can't be made, or samples of another evaluation.
    """
    distributed.refuse("retrieval")
    target.experiment.check_context(make_mesh(target.experiment.mesh))
    asked = benchmark(target.experiment, base_folder(target.origin))
    log = SampleLog(None if output is None else path_beside(output), identity(target, asked))
    tasks = ", ".join(asked.tasks)
    print(f"retrieval: {asked.num_samples:,} samples, {tasks}", file=sys.stderr)
    found = measure(target, asked, log, _progress())
    if output is not None:
        write_json(output, found.to_dict(), allow_nan=False)
        _draw(found, output, target)
    print(report.table(found, step=target.step, config=target.name))


def _draw(found: result.RetrievalResult, output: AnyPath, target: Target) -> None:
    """The heat map of each table, beside the result."""
    if not found.tables:
        return
    from hybrid.evaluation.retrieval import heat_map  # loads matplotlib, which takes a second

    stem = pathlib.PurePath(output.name).stem
    for task in found.tables:
        groups = found.of_task(task)
        caption = f"{target.name} · {groups[0].num_samples} samples a cell"
        heat_map.write(output.with_name(f"{stem}.{task}"), task, groups, caption)


def measure(
    target: Target,
    asked: Benchmark,
    log: SampleLog,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> result.RetrievalResult:
    """The scores of a target on the benchmark of its config.

    Args:
      log: the samples scored before, which it goes on with, of this `identity`.
      progress: called with tokens of prompts done and in all.
    """
    config = target.experiment
    mesh = make_mesh(config.mesh)
    with compiler.programs_kept(config.compilation_cache), jax.set_mesh(mesh):
        session = Session(config.model, target.read_params(mesh), config.inference)
        run(asked.groups, _replier(asked, session), log, config.eval.batch_size, progress)
    return result.summarized(asked.groups, log, _about(target, asked))


def _replier(asked: Benchmark, session: Session) -> Replier:
    """Replies end at the tokenizer's EOS, and at what the model's Hugging Face folder names."""
    tokenizer = asked.encoder.tokenizer
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if asked.base is not None:
        ends += pretrained.read_settings(asked.base).stop_ids
    pad_id = tokenizer.pad_id if tokenizer.pad_id < asked.encoder.vocab_size else 0
    return Replier(session, tuple(dict.fromkeys(ends)), pad_id, tokenizer.decode)


def _about(target: Target, asked: Benchmark) -> dict[str, Any]:
    """What a result names beside its scores."""
    config = target.experiment
    retrieval = config.eval.retrieval
    reads = prompts.reads_essay(retrieval)
    return {
        "seed": retrieval.seed,
        "haystack": haystack.name(config.data) if reads else None,
        "bos": "never" if asked.encoder.bos_id is None else "document",
        "chat_template": retrieval.chat_template,
        "step": target.step,
        "config": target.name,
        "overrides": dict(target.overrides),
    }


def identity(target: Target, asked: Benchmark, model: str = "") -> dict[str, Any]:
    """What decides the samples and the replies, for their log.

    Args:
      model: names the model; empty: by its folder's path.
    """
    config, about = target.experiment, _about(target, asked)
    keys = config_lib.to_dict(config.eval.retrieval)
    return {
        "format": FORMAT,
        "model": model or str(target.origin.path),
        "step": target.step,
        "content": _content(target),
        "eval.retrieval": {name: value for name, value in keys.items() if name not in _FREE},
        "files": _digests(config.eval.retrieval),
        "haystack": about["haystack"],
        "bos": about["bos"],
        "model config": config_lib.to_dict(config.model),
        "inference": config_lib.to_dict(config.inference),
        "data.needle": config_lib.to_dict(config.data.needle),
        "tokenizer": tokenizers.load(config.data.tokenizer).fingerprint,
    }


def _content(target: Target) -> str:
    """Tells models at one path apart, without a read of their weights.

    Of a run, the checksums of the checkpoint's parameters; of a Hugging Face folder, size and time
    of its files of weights.
    """
    folder = target.origin.path
    if target.step is not None:
        return checksums.digest(folder / checkpoint.FOLDER / str(target.step), "params/")
    stats = {path.name: path.stat() for path in folder.glob("*.safetensors")}
    held = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in sorted(stats.items())]
    return hashlib.sha256(repr(held).encode()).hexdigest()[:16]


def _digests(config: RetrievalConfig) -> dict[str, str]:
    """16 hex digits of the bytes of each file of questions or conversations, by its path."""
    questions = filter(None, (config.squad_path, config.hotpotqa_path, config.mrcr_tokenizer))
    patterns = [*questions, *config.mrcr_paths]
    paths = (pathlib.Path(path) for pattern in patterns for path in sources.matches_of(pattern))
    return {str(path): _digest(path) for path in paths if path.is_file()}


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _progress() -> Callable[[int, int], None]:
    """A function of (done, total) that writes `retrieval: 40 %, 1:30 left` every few seconds."""
    start = last = time.monotonic()

    def write(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = clock((now - start) / done * (total - done))
            print(f"retrieval: {100 * done // total} %, {left} left", file=sys.stderr, flush=True)

    return write
