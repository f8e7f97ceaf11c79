"""Text from a model: `generate(model, tokens)` and `python -m hybrid.generate`.

`command.py` is the command, `text.py` turns tokens into text as they come. The work is done by
`hybrid.inference.session.Session`.
"""

import sys
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hybrid import config as config_lib
from hybrid.config import MOST_SEED, ConfigError
from hybrid.costs import model_costs as cost
from hybrid.costs.chips import GIB
from hybrid.inference.config import InferenceConfig
from hybrid.inference.sampling import Sampling, row_keys
from hybrid.inference.session import MOST_STOP_TOKENS, Session, checked_lengths
from hybrid.loading.api import Model, checked_ids
from hybrid.process.host import memory_bytes

__all__ = ["generate", "session_of"]

MOST_POSITIONS = 2**31 - 1  # that int32 counts

_sessions: weakref.WeakKeyDictionary[Model, Session] = weakref.WeakKeyDictionary()


def generate(
    model: Model,
    tokens: Any,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | Sequence[int] = 0,
    lengths: Any = None,
    stop_tokens: Sequence[int] = (),
    pad_id: int | None = None,
    inference: InferenceConfig | None = None,
    on_tokens: Callable[[np.ndarray], None] | None = None,
) -> jax.Array:
    """Continues prompts, token by token.

    Args:
      tokens: int [batch, time], or [time] for one prompt.
      max_new_tokens: tokens that each row gets.
      temperature: 0 takes the likeliest token, else tokens are drawn; `top_k`, `top_p` and
        `min_p` leave out unlikely ones (`hybrid.inference.sampling`).
      seed: of the draws; row i draws by (seed, i), or by its own where there is one a row.
      lengths: int [batch], prompts are padded on the right and row i continues at lengths[i].
      stop_tokens: a row ends behind the first of these.
      pad_id: fills a row behind its end; None: the tokenizer's.
      inference: format of the cache; None: the run's own, or the defaults.
      on_tokens: called with the new tokens [batch, n] as they come, pad behind a row's end.
    Returns: int32 [batch, time + max_new_tokens].
    Raises: ConfigError naming an argument out of range; ValueError for shapes that disagree.
    """
    prompt = np.atleast_2d(checked_ids(tokens, model.config.vocab_size))
    lengths = checked_lengths(prompt, lengths)
    sampling = Sampling(temperature, top_k, top_p, min_p)
    check_limit(max_new_tokens, prompt.shape[1])
    if len(stop_tokens) > MOST_STOP_TOKENS:
        raise ConfigError("stop_tokens", f"must be at most {MOST_STOP_TOKENS}", list(stop_tokens))
    batch, time = prompt.shape
    keys, session = row_keys(checked_seeds(seed, batch), batch), session_of(model, inference)
    pad_id = model.pad_id if pad_id is None else pad_id
    out = np.full((batch, time + max_new_tokens), pad_id, np.int32)
    is_prompt = np.arange(time)[None, :] < lengths[:, None]
    out[:, :time] = np.where(is_prompt, prompt, pad_id)
    if not max_new_tokens:
        return jax.device_put(out)
    check_room(session, batch, int(lengths.max()), max_new_tokens)
    cache = session.empty(batch, int(lengths.max()), max_new_tokens)
    cache, logits = session.prefill(cache, prompt, lengths)
    ends = lengths
    settings: dict[str, Any] = {"keys": keys, "stop_tokens": stop_tokens, "pad_id": pad_id}
    for step in session.stream(cache, logits, max_new_tokens, sampling, **settings):
        num_new = step.tokens.shape[1]
        for row, end in enumerate(ends):
            out[row, end : end + num_new] = step.tokens[row]
        if on_tokens is not None:
            on_tokens(step.tokens)
        ends = ends + num_new
    return jax.device_put(out)


def session_of(model: Model, inference: InferenceConfig | None = None) -> Session:
    """The session that generates with `model`, kept as long as the model is."""
    inference = inference_of(model) if inference is None else inference
    session = _sessions.get(model)
    if session is None or session.inference != inference:
        session = _sessions[model] = Session(model.config, model.params, inference)
    return session


def inference_of(model: Model) -> InferenceConfig:
    """How the caches of a model are kept: as its run says, or the defaults."""
    return config_lib.build(InferenceConfig, (model.origin.run or {}).get("inference", {}))


def check_limit(max_new_tokens: int, num_tokens: int) -> None:
    """Raises: ConfigError for a number of new tokens that positions behind a prompt can't count."""
    most = MOST_POSITIONS - num_tokens
    if not 0 <= max_new_tokens <= most:
        raise ConfigError("max_new_tokens", f"must be 0 to {most}", max_new_tokens)


def check_room(session: Session, batch: int, num_tokens: int, max_new_tokens: int) -> None:
    """Raises: ConfigError for new tokens whose cache is larger than the memory for it.

    A cache grows as tokens come, so without this check a limit out of reach would show late.
    The same for positions that a model has no vectors for.
    """
    most = session.config.learned_positions
    if most and num_tokens + max_new_tokens > most:
        problem = f"goes beyond model.learned_positions ({most}) behind {num_tokens} tokens"
        raise ConfigError("max_new_tokens", problem, max_new_tokens)
    form = session.form(num_tokens + max_new_tokens)
    needed = cost.cache_bytes(session.plan, form, batch)["total"]
    memory = memory_bytes(session.devices)
    if needed > memory:
        problem = f"needs a cache of {needed / GIB:,.1f} GiB where memory has {memory / GIB:,.1f}"
        raise ConfigError("max_new_tokens", problem, max_new_tokens)


def checked_seeds(seed: Any, batch: int) -> np.ndarray:
    """uint32 [] or [batch] of a seed or of one a row.  Raises: ConfigError."""
    seeds = np.asarray(seed)
    if seeds.shape not in ((), (batch,)):
        raise ConfigError("seed", f"must be a number or {batch} of them, one a row", seed)
    if any(type(item) is not int or not 0 <= item <= MOST_SEED for item in seeds.ravel().tolist()):
        raise ConfigError("seed", f"must be a whole number from 0 to {MOST_SEED}", seed)
    return seeds.astype(np.uint32)


class _CallableModule(types.ModuleType):
    """Lets `hybrid.generate(...)` work whichever of function and module holds the name."""

    def __call__(self, *args, **kwargs):
        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
