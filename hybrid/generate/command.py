"""The command behind `python -m hybrid.generate`: a prompt in, its continuation as it comes.

The text goes to standard output; progress of a long prompt and speeds go to standard error. There
is nothing to save, so signals stop it at once.
"""

import dataclasses
import functools
import os
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from hybrid import config as config_lib
from hybrid.config import ConfigError, key, section
from hybrid.data import tokenizers
from hybrid.data.config import DataConfig
from hybrid.data.tokenizers import Tokenizer
from hybrid.generate import MOST_SEED, session_of
from hybrid.generate.text import TextStream
from hybrid.inference.config import InferenceConfig
from hybrid.inference.sampling import Sampling, row_keys
from hybrid.inference.session import Session
from hybrid.loading import api
from hybrid.loading.api import Model
from hybrid.process import cli

TOKENS_A_CALL = 8  # decoded between two writes of text
# The flag of each key that the Python interface names in its errors.
FLAG_OF = {
    "path": "--pretrained",
    "workdir": "--workdir",
    "checkpoint": "--checkpoint",
    "dtype": "--dtype",
    "model.dtype": "--dtype",
}
_write = functools.partial(print, end="", flush=True)
LONG_PROMPT = 4096  # tokens from which on progress is shown


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Keys under `data.` that the command takes."""

    tokenizer: str = key("", "byte, a tokenizer.json or a folder that holds one; empty: its own")
    bos: str = key(
        "auto",
        "whether BOS comes first: auto as the model was trained, document and window yes, never no",
        choices=("auto", "document", "window", "never"),
    )


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """The config keys that the command takes."""

    data: TextConfig = section(TextConfig)
    inference: InferenceConfig = section(InferenceConfig)


@dataclasses.dataclass(frozen=True)
class Request:
    """What to continue: the prompt and its ids int32 [t], tokens to add, how they are drawn."""

    prompt: str
    ids: np.ndarray
    max_new_tokens: int
    sampling: Sampling
    seed: int


def _define(values: flags.FlagValues) -> None:
    def text(name: str, doc: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, doc, flag_values=values)

    text("workdir", "folder of a run")
    text("checkpoint", "of the run: latest, best (by eval/loss) or a step", "latest")
    text("pretrained", "a Hugging Face folder (Gemma 2, 3, 4) in place of a workdir")
    text("dtype", "compute dtype of a Hugging Face folder", "float32")
    text("prompt", "the text to continue; empty: from the tokenizer's BOS")
    text("prompt_file", "a file that holds it; -: standard input")
    flags.DEFINE_integer(
        "max_new_tokens", 128, "tokens to add, fewer if EOS comes first", flag_values=values
    )
    flags.DEFINE_float("temperature", 0.0, "0: the likeliest token; else drawn", flag_values=values)
    flags.DEFINE_integer("top_k", 0, "draw from the k likeliest; 0: all", flag_values=values)
    flags.DEFINE_float("top_p", 1.0, "from the likeliest that reach p together", flag_values=values)
    flags.DEFINE_float("min_p", 0.0, "from those p times as likely as the best", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the draws", flag_values=values)


def _run(arguments: cli.Arguments) -> None:
    values = arguments.flags
    sampling = _sampling(values)
    if not 0 <= values.seed <= MOST_SEED:
        raise ConfigError("--seed", f"must be 0 to {MOST_SEED}", values.seed)
    if values.max_new_tokens < 0:
        raise ConfigError("--max_new_tokens", "must be at least 0", values.max_new_tokens)
    prompt = _prompt(values)
    parsed = config_lib.parse_overrides(GenerateConfig, arguments.overrides)
    config_lib.build(GenerateConfig, config_lib.updated({}, parsed))  # before anything is read
    model = _model(values)
    of_run = {"inference": (model.origin.run or {}).get("inference", {})}
    settings = config_lib.build(GenerateConfig, config_lib.updated(of_run, parsed))
    tokenizer = _tokenizer(model, settings.data)
    ids = _prompt_ids(prompt, tokenizer, model, settings.data)
    if values.pretrained:
        from hybrid import pretrained

        for warning in pretrained.raw_text_warning(model.origin.path):
            print(f"warning: {warning}", file=sys.stderr)
    request = Request(prompt, ids, values.max_new_tokens, sampling, values.seed)
    try:
        write(request, session_of(model, settings.inference), tokenizer)
    except BrokenPipeError:  # the reader has closed the pipe: `... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for what is flushed at exit)


def _sampling(values: flags.FlagValues) -> Sampling:
    try:
        return Sampling(values.temperature, values.top_k, values.top_p, values.min_p)
    except ConfigError as error:
        raise ConfigError(f"--{error.key}", error.problem, error.got, error.accepted) from None


def _prompt(values: flags.FlagValues) -> str:
    """The text of the flags.  Raises: ConfigError for none, two, or a file that can't be read."""
    given = [name for name in ("prompt", "prompt_file") if values[name].value is not None]
    if len(given) != 1:
        got = "both" if given else "neither"
        raise ConfigError("--prompt", "must be given, or --prompt_file", got, "one of them")
    if values.prompt is not None:
        return values.prompt
    path = values.prompt_file
    try:
        data = sys.stdin.buffer.read() if path == "-" else pathlib.Path(path).read_bytes()
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--prompt_file", f"can't be read ({error})", path) from None


def _model(values: flags.FlagValues) -> Model:
    folders = [name for name in ("workdir", "pretrained") if values[name].value]
    if len(folders) != 1:
        got = "both" if folders else "neither"
        raise ConfigError("--workdir", "must be given, or --pretrained", got, "one of them")
    try:
        if values.pretrained:
            return api.from_pretrained(values.pretrained, values.dtype)
        return api.load(values.workdir, values.checkpoint)
    except ConfigError as error:
        if error.key not in FLAG_OF:
            raise
        raise ConfigError(FLAG_OF[error.key], error.problem, error.got, error.accepted) from None


def _tokenizer(model: Model, text: TextConfig) -> Tokenizer:
    return tokenizers.load(DataConfig(tokenizer=text.tokenizer or model.origin.tokenizer))


def _prompt_ids(prompt: str, tokenizer: Tokenizer, model: Model, text: TextConfig) -> np.ndarray:
    """BOS, unless the policy is never, and the text's own ids."""
    ids = tokenizer.encode(prompt)
    policy = model.origin.bos if text.bos == "auto" else text.bos
    bos = tokenizers.resolve_bos(policy, tokenizer)
    ids = ids if bos == "never" else np.concatenate([[tokenizer.bos_id], ids])
    if not len(ids):
        raise ConfigError("--prompt", "is empty, and the model has no BOS to begin with", "''")
    if ids.max() >= model.config.vocab_size:
        problem = (
            f"the tokenizer gives ids beyond the model's vocabulary ({model.config.vocab_size})"
        )
        raise ConfigError("--prompt", problem, int(ids.max()))
    return ids.astype(np.int32)


def write(request: Request, session: Session, tokenizer: Tokenizer) -> None:
    """Writes prompt and continuation to standard output as it comes, speeds to standard error."""
    ids, limit = request.ids, request.max_new_tokens
    _write(request.prompt)
    start = time.perf_counter()
    progress = _show_progress if len(ids) >= LONG_PROMPT else None
    cache = session.empty(1, len(ids) + limit)
    cache, logits = session.prefill(cache, ids[None], progress=progress)
    jax.block_until_ready(logits)
    prefill_seconds = time.perf_counter() - start
    stop_tokens = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    settings: dict[str, Any] = {"keys": row_keys(request.seed, 1), "stop_tokens": stop_tokens}
    step = session.decode(cache, logits, 0, request.sampling, **settings)  # compiles
    text, num_new, start = TextStream(tokenizer, ids), 0, time.perf_counter()
    settings["tokens_a_call"] = TOKENS_A_CALL
    last = step
    for last in session.stream(step.cache, step.logits, limit, request.sampling, **settings):
        new = last.tokens[0, : int(last.num_tokens[0])]
        _write(text.feed(new))
        num_new += len(new)
    seconds = time.perf_counter() - start
    _write(text.rest() + "\n")
    print(
        f"prompt: {len(ids)} tokens in {prefill_seconds:.2f} s (compiling included); new: "
        f"{num_new} tokens, {num_new / seconds:.0f} tokens/s; cache: "
        f"{last.cache.num_bytes()['total']:,} bytes",
        file=sys.stderr,
    )


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    text = f"\rreading the prompt: {done:,} of {total:,} tokens"
    print(text, end=end, file=sys.stderr, flush=True)


COMMAND = cli.Command(
    name="python -m hybrid.generate",
    doc="Continues a prompt with a trained run or a Hugging Face folder, printing as it goes.",
    define=_define,
    config_class=GenerateConfig,
    run=_run,
)
