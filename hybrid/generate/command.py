"""The command behind `python -m hybrid.generate`: a prompt in, its continuation as it comes.

The text goes to standard output; progress of a long prompt and speeds go to standard error. There
is nothing to save, so signals stop it at once.
"""

import functools
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from hybrid import config as config_lib
from hybrid import pretrained
from hybrid.config import errors_under
from hybrid.data import tokenizers
from hybrid.data.tokenizers import Tokenizer
from hybrid.generate import check_limit, check_room, checked_seeds, session_of
from hybrid.generate.flags import (
    MODEL_FLAGS,
    GenerateConfig,
    base_settings,
    model_of_flags,
    stop_ids,
)
from hybrid.generate.prompt import prompt_ids, prompt_text, spelled_warning, stop_texts
from hybrid.generate.text import StopTexts, TextStream
from hybrid.inference.sampling import Sampling, row_keys
from hybrid.inference.session import Session
from hybrid.loading.api import Model
from hybrid.pretrained import Settings
from hybrid.process import cli, compiler, distributed

TOKENS_A_CALL = 8  # decoded between two writes of text
_write = functools.partial(print, end="", flush=True)
LONG_PROMPT = 4096  # tokens from which on progress is shown


def _run(arguments: cli.Arguments) -> None:
    distributed.refuse("generate", arguments.overrides)
    parsed = config_lib.parse_overrides(GenerateConfig, arguments.overrides)
    given = config_lib.build(GenerateConfig, config_lib.updated({}, parsed))
    with compiler.programs_kept(given.compilation_cache):
        _generate(arguments.flags, parsed)


def _generate(values: Any, parsed: dict[str, Any]) -> None:
    with errors_under("--"):
        sampling = Sampling(values.temperature, values.top_k, values.top_p, values.min_p)
        seed = checked_seeds(values.seed, 1)
        check_limit(values.max_new_tokens, 0)
    prompt, stops = prompt_text(values), stop_texts(values.stop)
    model = model_of_flags(values)
    of_run = {"inference": (model.origin.run or {}).get("inference", {})}
    settings = config_lib.build(GenerateConfig, config_lib.updated(of_run, parsed))
    tokenizer = tokenizers.load(settings.data.tokenizer or model.origin.tokenizer)
    parses = values.parse_special
    ids = prompt_ids(prompt, tokenizer, model, settings.data.bos, parses=parses)
    session = session_of(model, settings.inference)
    with errors_under("--"):
        check_limit(values.max_new_tokens, len(ids))
        check_room(session, 1, len(ids), values.max_new_tokens)
    base = base_settings(model)
    drawing = {"sampling": sampling, "keys": row_keys(seed, 1)}
    drawing["stop_tokens"] = stop_ids(tokenizer, base)
    num_tokens = len(ids) + values.max_new_tokens
    for warning in _warnings("" if parses else prompt, num_tokens, tokenizer, model, base):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        _write(prompt)
        _continue(ids, values.max_new_tokens, session, tokenizer, StopTexts(stops), **drawing)
    except BrokenPipeError:  # the reader has closed the pipe: `... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for what is flushed at exit)


def _warnings(
    unparsed: str, num_tokens: int, tokenizer: Tokenizer, model: Model, base: Settings | None
) -> Iterator[str]:
    """What makes the continuation doubtful, a line each.

    Args:
      unparsed: what of the prompt is read letter by letter.
      num_tokens: of the prompt and, at most, behind it.
    """
    if not model.origin.is_run:
        yield from pretrained.raw_text_warning(model.origin.path)
    yield from spelled_warning(unparsed, tokenizer)
    if base is not None and num_tokens > base.max_positions:
        yield (
            f"prompt and new tokens may be {num_tokens:,}, and the model was made for "
            f"{base.max_positions:,} (max_position_embeddings)"
        )


def _continue(
    ids: np.ndarray,
    limit: int,
    session: Session,
    tokenizer: Tokenizer,
    stops: StopTexts,
    **settings: Any,
) -> None:
    """Writes what follows `ids` int32 [t] to standard output as it comes, speeds to stderr."""
    start = time.perf_counter()
    progress = _show_progress if len(ids) >= LONG_PROMPT else None
    cache = session.empty(1, len(ids), limit)
    cache, logits = session.prefill(cache, ids[None], progress=progress)
    jax.block_until_ready(logits)
    prefill_seconds = time.perf_counter() - start
    step = last = session.decode(cache, logits, 0, **settings)  # compiles
    text, num_new, start = TextStream(tokenizer, ids), 0, time.perf_counter()
    settings["tokens_a_call"] = TOKENS_A_CALL
    for last in session.stream(step.cache, step.logits, limit, **settings):
        new = last.tokens[0, : int(last.num_tokens[0])]
        _write(stops.cut(text.feed(new)))
        num_new += len(new)
        if stops.is_met:
            break
    seconds = time.perf_counter() - start
    _write(stops.cut(text.rest()) + "\n")
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
    flags={
        **MODEL_FLAGS,
        "prompt": ("the text to continue; empty: from the tokenizer's BOS", str),
        "prompt_file": ("a file that holds it; -: standard input", pathlib.Path),
        "parse_special": ("take control tokens that the prompt spells as tokens, not text", False),
        "max_new_tokens": ("tokens to add, fewer if the text ends before", 128),
        "stop": (
            "end behind this text, if it comes; a JSON list of texts, "
            """'["\\n\\n", "END"]', ends behind whichever comes first""",
            "",
        ),
        "temperature": ("0: the likeliest token; else drawn", 0.0),
        "top_k": ("draw from the k likeliest; 0: all", 0),
        "top_p": ("from the likeliest that reach p together", 1.0),
        "min_p": ("from those p times as likely as the best", 0.0),
        "seed": ("of the draws", 0),
    },
    config_class=GenerateConfig,
    run=_run,
)
