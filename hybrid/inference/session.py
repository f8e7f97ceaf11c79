"""A model made ready to infer: its parameters prepared once, three programs compiled once.

    session = Session(config, params, inference)
    cache = session.empty(batch, length)
    cache, logits = session.prefill(cache, tokens, lengths)      chunk by chunk
    step = session.decode(cache, logits, num_tokens, ...)        a loop on the device
    for step in session.stream(cache, logits, num_tokens, ...):  one after another

What a program depends on is rounded up: capacities to a few sizes (`bucket`), chunks to powers of
two. So no prompt length and no number of tokens compiles anew, but for a cache that decoding has
filled: it doubles. Programs use up the cache that they are given; `cache.copy()` keeps one.

Read next: `sampling.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from hybrid import model
from hybrid.inference.config import InferenceConfig
from hybrid.inference.sampling import Sampling, row_keys, sample
from hybrid.model import cache as state
from hybrid.model import stack
from hybrid.model.cache import Cache
from hybrid.model.config import ModelConfig
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.model.params import is_matrix, map_axes
from hybrid.model.pattern import LayerPlan
from hybrid.ops import dispatch

FEWEST_SLOTS = 128
MOST_AHEAD = 4096  # new tokens that a cache is allocated for before there are any
FEWEST_IN_CHUNK = 16
TOKENS_A_CALL = 64  # of the decoding loop
MOST_STOP_TOKENS = 8
DEFAULTS, GREEDY = InferenceConfig(), Sampling()


class Decoded(NamedTuple):
    """What a call of the decoding loop gives.

    Attributes:
      tokens: int32 [b, n], an array of jax (of numpy in `stream`); pad from a row's end on.
      num_tokens: int32 [b], tokens of each row before its padding, a stop token counted.
      is_done: bool [b], rows that have met a stop token.
      cache, logits: arguments of the next call.
    """

    tokens: Any
    num_tokens: jax.Array
    is_done: jax.Array
    cache: Cache
    logits: jax.Array


def bucket(tokens: int) -> int:
    """The capacity that holds `tokens`: eight sizes a doubling, so at most an eighth is spare.

    >>> [bucket(n) for n in (1, 128, 129, 1000, 2049)]
    [128, 128, 144, 1024, 2304]
    """
    step = max(2 * FEWEST_SLOTS, 1 << (max(tokens, 1) - 1).bit_length()) // 16
    return max(FEWEST_SLOTS, -(-tokens // step) * step)


class Session:
    """Prefill and decode with one model."""

    def __init__(
        self, config: ModelConfig, params: model.Params, inference: InferenceConfig = DEFAULTS
    ):
        plan = model.layer_plan(config)
        layers = inference.layers
        if layers == "auto":
            layers = "loop" if dispatch.backend() == "cpu" else "scan"
        self.config = dataclasses.replace(config, remat="none", unroll=False)
        self.plan = plan.unrolled() if layers == "loop" else plan
        self.inference = inference
        prepared = _prepared(self.config, plan, layers, params)
        # Flattened once: a call then passes a list, not a tree of dicts.
        leaves, self._structure = jax.tree.flatten(prepared)
        self.devices = {device for leaf in leaves for device in leaf.devices()}
        self._device = next(iter(self.devices)) if len(self.devices) == 1 else None
        self._leaves = [self._committed(leaf) for leaf in leaves]
        self._slot_arrays: dict[CacheFormat, Any] = {}

    @property
    def params(self) -> model.Params:
        """The parameters as steps use them, in the layout of `plan`."""
        return jax.tree.unflatten(self._structure, self._leaves)

    # --- Caches ------------------------------------------------------------------------------

    def empty(self, batch: int, length: int, max_new_tokens: int = 0) -> Cache:
        """An empty cache with room for at least `length` tokens a row.

        Args:
          max_new_tokens: further ones that may come; room is made for the first MOST_AHEAD of them,
            since most texts end long before a generous limit.
        """
        form = self.form(bucket(length + min(max_new_tokens, MOST_AHEAD)))
        return self._committed(_allocate(self.plan, form, batch))

    def form(self, capacity: int) -> CacheFormat:
        """The format of a cache with room for `capacity` tokens a row."""
        return CacheFormat(
            capacity=capacity,
            dtype=self.inference.cache_dtype or self.config.dtype,
            slack=self.inference.slack,
            unified=self.inference.unified_cache,
        )

    def _committed(self, tree: Any) -> Any:
        """Arrays as a program's results are, so that the first call compiles what later ones use.

        On one device they lose the mesh that they were read on and are committed to the device.
        """
        if self._device is None:
            return tree
        sharding = SingleDeviceSharding(self._device)
        make = jax.make_array_from_single_device_arrays
        return jax.tree.map(
            lambda leaf: make(leaf.shape, sharding, [leaf.addressable_shards[0].data]), tree
        )

    def _with_room(self, cache: Cache, more: int, *, doubles: bool = False) -> Cache:
        """The cache, grown if `more` tokens a row do not fit.

        doubles: to a power of two, where more will follow: few capacities, few programs.
        """
        needed = int(jnp.max(cache.length)) + more
        if needed <= cache.form.capacity:
            return cache
        return cache.grown(bucket(1 << (needed - 1).bit_length() if doubles else needed))

    def slot_arrays(self, form: CacheFormat) -> dict:
        """What layers read of a cache's slots, made once a format."""
        if form not in self._slot_arrays:
            self._slot_arrays[form] = model.slot_arrays(self.plan, form, self.config.dtype)
        return self._slot_arrays[form]

    # --- Prefill -----------------------------------------------------------------------------

    def prefill(
        self,
        cache: Cache,
        tokens: Any,
        lengths: Any = None,
        *,
        chunk: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Cache, jax.Array]:
        """Reads tokens behind those in the cache.

        Args:
          tokens: int32 [b, t], t at least 1.
          lengths: int [b], how many of a row's tokens are no padding, at least 1; None: all.
          chunk: tokens at a time; 0: `inference.prefill_chunk`.
          progress: called with (tokens done, tokens in all) after each chunk.
        Returns: the cache, and the logits [b, v] behind each row's last token.
        Raises: ValueError for lengths outside 1 to t.
        """
        tokens = np.asarray(tokens, np.int32)
        lengths = checked_lengths(tokens, lengths)
        total, size = int(lengths.max()), chunk or self.inference.prefill_chunk
        cache = self._with_room(cache, total)
        angles = self.slot_arrays(cache.form)
        dtype = jnp.promote_types(self.config.dtype, jnp.float32)
        logits = self._committed(jnp.zeros((len(tokens), self.config.vocab_size), dtype))
        for start in range(0, total, size):
            part = tokens[:, start : min(start + size, total)]
            width = part.shape[1]
            if width < size and not chunk:
                width = min(size, max(FEWEST_IN_CHUNK, 1 << (width - 1).bit_length()))
            part = np.pad(part, ((0, 0), (0, width - part.shape[1])))
            num_new = np.clip(lengths - start, 0, width)
            cache, logits = _read_chunk(
                self.config, self._structure, self._leaves, part, num_new, cache, logits, angles
            )
            if progress is not None:
                jax.block_until_ready(logits)
                progress(min(start + size, total), total)
        return cache, logits

    # --- Decode ------------------------------------------------------------------------------

    def decode(
        self,
        cache: Cache,
        logits: jax.Array,
        num_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        keys: jax.Array | None = None,
        stop_tokens: Sequence[int] = (),
        is_done: jax.Array | None = None,
        pad_id: int = 0,
    ) -> Decoded:
        """Chooses up to `num_tokens` (at most TOKENS_A_CALL) and puts them behind the cache.

        With 0 the loop is compiled and nothing else happens.

        Args:
          logits: [b, v], a result of `prefill` or `decode`.
          keys: of `row_keys`; None: seed 0.
          stop_tokens: a row ends with the first of these; all rows done end the loop.
          is_done: bool [b], rows that have ended already.
          pad_id: fills a row behind its end.
        Raises: ValueError for more tokens or stop tokens than the loop takes.
        """
        if not 0 <= num_tokens <= TOKENS_A_CALL:
            raise ValueError(f"num_tokens: must be 0 to {TOKENS_A_CALL} a call, got {num_tokens}")
        if len(stop_tokens) > MOST_STOP_TOKENS:
            raise ValueError(f"stop_tokens: at most {MOST_STOP_TOKENS}, got {len(stop_tokens)}")
        cache = self._with_room(cache, num_tokens, doubles=True)
        keys = row_keys(0, cache.batch) if keys is None else keys
        is_done = self._committed(jnp.zeros(cache.batch, bool)) if is_done is None else is_done
        stops = np.full(MOST_STOP_TOKENS, -1, np.int32)
        stops[: len(stop_tokens)] = stop_tokens
        return _decode(
            self.config,
            self._structure,
            sampling.kind,
            self._leaves,
            cache,
            logits,
            is_done,
            keys,
            {
                "limit": np.int32(num_tokens),
                "stops": stops,
                "pad": np.int32(pad_id),
                "sampling": sampling.numbers(),
                "angles": self.slot_arrays(cache.form),
            },
        )

    def stream(
        self,
        cache: Cache,
        logits: jax.Array,
        num_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        tokens_a_call: int = TOKENS_A_CALL,
        **settings: Any,
    ) -> Iterator[Decoded]:
        """`decode` again and again until there are `num_tokens`, or all rows are done.

        Args:
          tokens_a_call: between two results, at most TOKENS_A_CALL.
          settings: `keys`, `stop_tokens` and `pad_id` of `decode`.
        Yields: what `decode` gives, `tokens` a numpy array without unused columns.  Each cache is
          used up by the next step.
        """
        is_done = None
        for start in range(0, num_tokens, tokens_a_call):
            count = min(tokens_a_call, num_tokens - start)
            step = self.decode(cache, logits, count, sampling, is_done=is_done, **settings)
            cache, logits, is_done = step.cache, step.logits, step.is_done
            yield step._replace(tokens=np.asarray(step.tokens)[:, :count])
            if np.asarray(is_done).all():
                return


def checked_lengths(tokens: np.ndarray, lengths: Any) -> np.ndarray:
    """int32 [b] of prompts [b, t].  Raises: ValueError naming what is wrong."""
    if tokens.ndim != 2 or not tokens.size:
        raise ValueError(f"tokens: shape must be [batch, time], both above 0, got {tokens.shape}")
    batch, time = tokens.shape
    if lengths is None:
        return np.full(batch, time, np.int32)
    lengths = np.asarray(lengths)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: shape is {lengths.shape}, tokens have {batch} rows")
    if lengths.min() < 1 or lengths.max() > time:
        raise ValueError(f"lengths: must be from 1 to {time}, got {lengths.tolist()}")
    return lengths.astype(np.int32)


# --- Programs --------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prepared(config: ModelConfig, plan: LayerPlan, layers: str, params):
    """Parameters as steps use them: matrices in the compute dtype, layers apart for a loop."""

    def cast(names, leaf):
        return leaf.astype(config.dtype) if is_matrix(names) else leaf

    params = map_axes(cast, model.logical_axes(config), params)
    if layers == "loop":
        params = params | {"segments": stack.unrolled(plan, params["segments"])}
    return params


_allocate = jax.jit(state.allocate, static_argnums=(0, 1, 2))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(5, 6))
def _read_chunk(config, structure, leaves, tokens, num_new, cache, logits, angles):
    """The cache with a chunk in it; logits of a row's last token, the old ones if it has none."""
    params = jax.tree.unflatten(structure, leaves)
    x, cache = model.extend(config, params, tokens, num_new, cache, angles)
    last = jnp.maximum(num_new - 1, 0)[:, None, None]
    x = jnp.take_along_axis(x, last, axis=1)[:, 0]
    return cache, jnp.where(num_new[:, None] > 0, model.head(config, params, x), logits)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5, 6))
def _decode(config, structure, kind, leaves, cache, logits, is_done, keys, settings) -> Decoded:
    params = jax.tree.unflatten(structure, leaves)
    batch = len(is_done)

    def goes_on(carry):
        i, is_done = carry[0], carry[3]
        return (i < settings["limit"]) & ~jnp.all(is_done)

    def step(carry):
        i, tokens, count, is_done, cache, logits = carry
        token = sample(logits, keys, cache.length, kind, settings["sampling"])
        token = jnp.where(is_done, settings["pad"], token)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], i, axis=1)
        num_new = jnp.where(is_done, 0, 1).astype(jnp.int32)
        x, cache = model.extend(config, params, token[:, None], num_new, cache, settings["angles"])
        stops = jnp.any(token[:, None] == settings["stops"][None, :], axis=1)
        logits = model.head(config, params, x[:, 0])
        return i + 1, tokens, count + num_new, is_done | stops, cache, logits

    tokens = jnp.full((batch, TOKENS_A_CALL), settings["pad"], jnp.int32)
    count = jnp.zeros(batch, jnp.int32)
    start = (jnp.int32(0), tokens, count, is_done, cache, logits)
    _, tokens, count, is_done, cache, logits = jax.lax.while_loop(goes_on, step, start)
    return Decoded(tokens, count, is_done, cache, logits)
