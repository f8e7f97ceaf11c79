"""Our side of the decoding comparison: a worker that runs the product's session."""

import dataclasses
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import model as bench
from benchmarks.model import MODEL, Shape
from benchmarks.ours import start_params
from benchmarks.workers import readings, serve
from hybrid import model
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session


class Ours:
    """The methods that the parent asks for; `layout` is an `inference.unified_cache`."""

    def __init__(self, layout: str):
        self.layout = layout
        inference = InferenceConfig(unified_cache=layout)
        self.session = Session(MODEL, jax.tree.map(jnp.array, start_params()), inference)

    def save_weights(self, path: str) -> None:
        """Writes the starting weights by the peer's names."""
        np.savez(path, **bench.peer_weights(start_params()))

    def describe(self) -> dict:
        """How this side runs."""
        return {
            "library": f"jax {jax.__version__}",
            "threads": len(os.sched_getaffinity(0)),
            "cache": self.layout.replace("_", " "),
            "compile": "jit",
        }

    def prepare(self, shape: list[int], num_new: int) -> dict:
        """Reads the prompt; the first 32 tokens it goes on with, and how long it all took."""
        prompt = bench.tokens(Shape(*shape))
        rows, length = shape
        # Once for the compiler, which the peer's eager prompt does without.
        chunk = self.session.inference.prefill_chunk
        warm = self.session.empty(rows, length + num_new)
        self.session.prefill(warm, prompt[:, : min(length, 2 * chunk)])
        start = time.perf_counter()
        cache = self.session.empty(rows, length + num_new)
        cache, logits = self.session.prefill(cache, prompt)
        jax.block_until_ready(logits)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.state = self.session.decode(cache, logits, 32)
        tokens = np.asarray(self.state.tokens)[:, :32].tolist()
        first = time.perf_counter() - start
        size = self.state.cache.num_bytes()["total"]
        return {"prompt_seconds": seconds, "tokens": tokens, "first": first, "cache_bytes": size}

    def time(self, count: int, num_tokens: int) -> list[tuple[float, float]]:
        """(seconds, others' share) of `count` runs of `num_tokens` steps."""

        def decode():
            self.state = self.session.decode(self.state.cache, self.state.logits, num_tokens)
            np.asarray(self.state.tokens)

        return readings(decode, count)

    def local_layers(self, length: int, count: int, num_tokens: int) -> list[tuple[float, float]]:
        """The same of a model of local layers alone, behind a prompt of `length`."""
        config = dataclasses.replace(MODEL, pattern="L", last_layer="any", unified_kv=False)
        session = Session(config, jax.jit(lambda: model.init(config, jax.random.key(0)))())
        prompt = bench.tokens(Shape(1, length))
        cache = session.empty(1, length + num_tokens * (count + 1))
        state = session.decode(*session.prefill(cache, prompt), num_tokens)

        def decode():
            nonlocal state
            state = session.decode(state.cache, state.logits, num_tokens)
            jax.block_until_ready(state.tokens)

        return readings(decode, count)

    def bandwidth(self) -> list[float]:
        """GB/s of reading 256 MB in a sum, one a reading: the ceiling of a step."""
        array = jnp.ones(64 << 20, jnp.float32)
        total = jax.jit(jnp.sum)
        jax.block_until_ready(total(array))
        timed = readings(lambda: jax.block_until_ready(total(array)), 5)
        return [1e-9 * array.nbytes / seconds for seconds, _ in timed]

    def release(self) -> None:
        """Drops what was prepared."""
        self.state = None


if __name__ == "__main__":
    serve(Ours(*sys.argv[1:2]))
