"""transformers' side of the decoding comparison: Gemma4ForCausalLM with our weights, as a worker.

    python -m benchmarks.decode_peer CACHE MODE        dynamic | static, eager | compile

It gets what suits it: no mask and no padding, the prompt in chunks, no generate() around the loop,
positions given, inference mode, freed memory kept.
"""

import sys
import time

import numpy as np
import torch
import transformers
from transformers import DynamicCache, StaticCache

from benchmarks import model as bench
from benchmarks.model import Shape
from benchmarks.peer import load
from benchmarks.workers import readings, serve

CHUNK = 1024


class Peer:
    """The methods that the parent asks for, as `decode_ours.Ours` has them."""

    def __init__(self, cache: str, mode: str):
        self.kind, self.mode = cache, mode

    def load(self, path: str) -> None:
        """Remembers where the weights are."""
        self.path = path

    def describe(self) -> dict:
        """How this side runs."""
        return {
            "library": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "threads": torch.get_num_threads(),
            "cache": f"{self.kind}, keys and values",
            "compile": "torch.compile" if self.mode == "compile" else "eager",
        }

    @torch.inference_mode()
    def prepare(self, shape: list[int], num_new: int) -> dict:
        """Reads the prompt; the first 32 tokens it goes on with, and how long it all took."""
        torch._dynamo.reset()
        length = shape[1]
        self.model = load(self.path, "sdpa").eval()
        # Without dynamic=False, which would compile anew for each length until it gives up, and
        # without masks made outside as generate() makes them: 319 against 314 tokens/s with them.
        self.run = torch.compile(self.model) if self.mode == "compile" else self.model
        prompt = torch.from_numpy(bench.tokens(Shape(*shape))).long()
        most = length + num_new
        config = self.model.config
        dynamic = self.kind == "dynamic"
        self.cache = DynamicCache(config=config) if dynamic else StaticCache(config, most)
        start = time.perf_counter()
        for first in range(0, length, CHUNK):
            part = prompt[:, first : first + CHUNK]
            logits = self._forward(self.model, part, first)
        self.token, self.position = logits.argmax(-1), length
        seconds = time.perf_counter() - start
        tokens, start = [], time.perf_counter()
        for _ in range(32):
            tokens.append(self.token[:, 0].tolist())
            self._step()
        first = time.perf_counter() - start
        return {"prompt_seconds": seconds, "tokens": np.array(tokens).T.tolist(), "first": first}

    def _forward(self, run, tokens, first):
        positions = torch.arange(first, first + tokens.shape[1])[None].expand(len(tokens), -1)
        out = run(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits

    def _step(self):
        self.token = self._forward(self.run, self.token, self.position).argmax(-1)
        self.position += 1

    @torch.inference_mode()
    def time(self, count: int, num_tokens: int) -> list[tuple[float, float]]:
        """(seconds, others' share) of `count` runs of `num_tokens` steps."""

        def decode():
            for _ in range(num_tokens):
                self._step()
                self.token.tolist()  # a loop that streams or stops reads every token

        return readings(decode, count)

    def release(self) -> None:
        """Drops what was prepared."""
        self.model = self.run = self.cache = None


if __name__ == "__main__":
    serve(Peer(*sys.argv[1:3]))
