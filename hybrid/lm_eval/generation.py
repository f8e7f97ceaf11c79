"""Replies in batches, until a stop text, EOS or the limit: what `generate_until` asks for."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from hybrid.config import ConfigError, errors_under
from hybrid.data.tokenizers import Tokenizer
from hybrid.generate import check_room
from hybrid.inference.sampling import Sampling, row_keys
from hybrid.inference.session import Session
from hybrid.process import cli

TOKENS_A_CALL = 16  # decoded between two looks for a stop text
KEY = "generation_kwargs"
_DRAWING = ("temperature", "top_k", "top_p", "min_p")
# What changes nothing at these values, and is not served at others.
_WITHOUT_EFFECT = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How replies are made.

    Attributes:
      stops: texts that a reply ends before.
      limit: tokens of a reply.
    """

    stops: tuple[str, ...]
    limit: int
    sampling: Sampling


def settings_of(values: Mapping[str, Any], most: int) -> Settings:
    """The settings of a request's `generation_kwargs`; `most` tokens where it names no limit.

    Greedy unless `do_sample` or a temperature above 0 is given.
    Raises: ConfigError for a value out of range or a key that is not served.
    """
    given = dict(normalize_gen_kwargs(dict(values), most))
    limit, draws = given.pop("max_gen_toks"), given.pop("do_sample")
    stops = tuple(filter(None, given.pop("until")))
    numbers = {name: given.pop(name) for name in _DRAWING if name in given}
    numbers = {"temperature": 1.0} | numbers if draws else {}
    for name, value in given.items():
        if name not in _WITHOUT_EFFECT or value != _WITHOUT_EFFECT[name]:
            served = ", ".join(["until", "max_gen_toks", "do_sample", *_DRAWING])
            raise ConfigError(f"{KEY}.{name}", "is not served", value, served)
    if limit < 1:
        raise ConfigError(f"{KEY}.max_gen_toks", "must be at least 1", limit)
    with errors_under(f"{KEY}."):
        return Settings(stops, limit, Sampling(**numbers))


def replies(
    session: Session,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    settings: Settings,
    *,
    seeds: np.ndarray,
    stop_ids: Sequence[int],
    pad_id: int,
) -> list[str]:
    """What follows each prompt, without the stop text or EOS that ended it.

    Args:
      prompts: int32 [t] each, t at least 1.
      seeds: uint32 [batch], of the draws of each.
    Raises: ConfigError for a cache that no memory holds.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.full((len(prompts), lengths.max()), pad_id, np.int32)
    for line, prompt in zip(tokens, prompts, strict=True):
        line[: len(prompt)] = prompt
    with cli.errors_by_flag({"max_new_tokens": f"{KEY}.max_gen_toks"}):
        check_room(session, len(prompts), int(lengths.max()), settings.limit)
    # A power of two, since each batch has another length.
    room = 1 << (int(lengths.max()) - 1).bit_length()
    cache = session.empty(len(prompts), room, settings.limit)
    cache, logits = session.prefill(cache, tokens, lengths)
    found: list[list[int]] = [[] for _ in prompts]
    texts, is_open = [""] * len(prompts), [True] * len(prompts)
    keys = row_keys(seeds, len(prompts))
    for step in session.stream(
        cache,
        logits,
        settings.limit,
        settings.sampling,
        tokens_a_call=TOKENS_A_CALL,
        keys=keys,
        stop_tokens=stop_ids,
        pad_id=pad_id,
    ):
        for row, new in enumerate(step.tokens):
            if is_open[row]:
                found[row] += _until(new, stop_ids)
                texts[row] = tokenizer.decode(found[row])
                is_open[row] = not (
                    np.isin(new, stop_ids).any()
                    or any(stop in texts[row] for stop in settings.stops)
                )
        if not any(is_open):
            break
    return [postprocess_generated_text(text, list(settings.stops), None) for text in texts]


def _until(tokens: np.ndarray, stop_ids: Sequence[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    ends = np.flatnonzero(np.isin(tokens, stop_ids))
    return tokens[: ends[0] if len(ends) else None].tolist()
