"""`eval.py` where `eval.retrieval.tasks` are set: replies of a model to prompts, scored.

Everything that can be wrong is refused before the model is read: a prompt of each task is made, at
its shortest length.
With `--output`, samples are kept beside it as they are scored, so the same command goes on with a
run that was stopped.
Read first: `../target.py` (which model and config count), `prompts.py`, `run.py`.
"""

import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from hybrid import config as config_lib
from hybrid import pretrained
from hybrid.config import ConfigError
from hybrid.data import chat, sources, tokenizers
from hybrid.evaluation.config import RetrievalConfig
from hybrid.evaluation.retrieval import haystack, mrcr, prompts, report, result
from hybrid.evaluation.retrieval.prompts import Encoder, Group
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

SECONDS_BETWEEN_LINES = 5.0
CHAT_KEY = "eval.retrieval.chat_template"
# Keys that add samples or take some away, but change none.
_FREE = ("tasks", "lengths", "depths", "num_samples", "num_needles")


def evaluate(target: Target, output: AnyPath | None) -> None:
    """Prints the tables of a target, and writes its result to `output` and beside it.

    Raises: ConfigError by key for a task that can't be made, or samples of another evaluation.
    """
    distributed.refuse("retrieval")
    found = measure(target, None if output is None else path_beside(output), _progress())
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
    samples: AnyPath | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> result.RetrievalResult:
    """The scores of a target on the tasks of its config.

    Args:
      samples: the file of scored samples, which it goes on with; None: none is kept.
      progress: called with tokens of prompts done and in all.
    Raises: ConfigError as `evaluate`.
    """
    config = target.experiment
    encoder = _encoder(target)
    about = _about(target, encoder)
    groups = _groups(target, encoder)
    shortest = {group.task: group for group in sorted(groups, key=lambda group: -group.length)}
    for group in shortest.values():
        group.make(0)
    log = SampleLog(samples, _identity(target, about))
    mesh = make_mesh(config.mesh)
    config.check_context(mesh)
    num = sum(group.count for group in groups)
    print(f"retrieval: {num:,} samples, {', '.join(shortest)}", file=sys.stderr)
    with compiler.programs_kept(config.compilation_cache), jax.set_mesh(mesh):
        session = Session(config.model, target.read_params(mesh), config.inference)
        run(groups, _replier(target, encoder, session), log, config.eval.batch_size, progress)
    return result.summarized(groups, log, about)


def _groups(target: Target, encoder: Encoder) -> list[Group]:
    config = target.experiment
    retrieval, data = config.eval.retrieval, config.data
    essay = haystack.essay(data) if prompts.reads_essay(retrieval) else ()
    found = list(prompts.Maker(retrieval, encoder, essay, data.needle).groups())
    return [*found, *(mrcr.groups(retrieval, encoder) if "mrcr" in retrieval.tasks else ())]


def _encoder(target: Target) -> Encoder:
    config = target.experiment
    tokenizer = tokenizers.load(config.data.tokenizer)
    bos = tokenizers.resolve_bos(config.data.bos, tokenizer)
    template = None
    if config.eval.retrieval.chat_template:
        base = base_folder(target.origin)
        if base is None:
            problem = "is the template of a Hugging Face folder, and the model is of none"
            raise ConfigError(CHAT_KEY, problem, True, "false")
        template = chat.read(base, CHAT_KEY)
    bos_id = None if bos == "never" else tokenizer.bos_id
    return Encoder(tokenizer, bos_id, config.model.vocab_size, template)


def _replier(target: Target, encoder: Encoder, session: Session) -> Replier:
    """Replies end at the tokenizer's EOS, and at what the model's Hugging Face folder names."""
    tokenizer, base = encoder.tokenizer, base_folder(target.origin)
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if base is not None:
        ends += pretrained.read_settings(base).stop_ids
    pad_id = tokenizer.pad_id if tokenizer.pad_id < encoder.vocab_size else 0
    return Replier(session, tuple(dict.fromkeys(ends)), pad_id, tokenizer.decode)


def _about(target: Target, encoder: Encoder) -> dict[str, Any]:
    """What a result names beside its scores."""
    config = target.experiment
    retrieval = config.eval.retrieval
    reads = prompts.reads_essay(retrieval)
    return {
        "seed": retrieval.seed,
        "haystack": haystack.name(config.data) if reads else None,
        "bos": "never" if encoder.bos_id is None else "document",
        "chat_template": retrieval.chat_template,
        "step": target.step,
        "config": target.name,
        "overrides": dict(target.overrides),
    }


def _identity(target: Target, about: dict[str, Any]) -> dict[str, Any]:
    """What decides the samples and the replies."""
    config = target.experiment
    keys = config_lib.to_dict(config.eval.retrieval)
    return {
        "format": FORMAT,
        "model": str(target.origin.path),
        "step": target.step,
        "keys": {name: value for name, value in keys.items() if name not in _FREE},
        "files": _sizes(config.eval.retrieval),
        "haystack": about["haystack"],
        "bos": about["bos"],
        "model config": config_lib.to_dict(config.model),
        "inference": config_lib.to_dict(config.inference),
        "data.needle": config_lib.to_dict(config.data.needle),
        "tokenizer": tokenizers.load(config.data.tokenizer).fingerprint,
    }


def _sizes(config: RetrievalConfig) -> dict[str, int]:
    """Bytes of each file of questions or conversations, by its path."""
    questions = filter(None, (config.squad_path, config.hotpotqa_path))
    patterns = [*questions, *config.mrcr_paths]
    paths = (pathlib.Path(path) for pattern in patterns for path in sources.matches_of(pattern))
    return {str(path): path.stat().st_size for path in paths if path.is_file()}


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
