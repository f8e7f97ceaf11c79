"""transformers' side of the comparison: Gemma4ForCausalLM with our weights, as a worker.

    python -m benchmarks.peer ATTENTION MODE        sdpa | flex_attention, eager | compile

It gets what a user would give it: no attention mask and no padding (so that sdpa may take its
causal path), no cache, the fused AdamW, as many threads as cores, the allocator setting that our
side has too. Only this file needs torch.
"""

import sys
import time

import numpy as np
import torch
import transformers
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from benchmarks import model as bench
from benchmarks.model import ADAMW, MODEL, Shape
from benchmarks.workers import readings, serve

CEILING_SIZE = 4096


def build_config(attention: str) -> Gemma4TextConfig:
    """The benchmark model in transformers' words: no per-layer embeddings, experts or reuse."""
    return Gemma4TextConfig(
        vocab_size=MODEL.vocab_size,
        hidden_size=MODEL.d_model,
        intermediate_size=MODEL.ffn_dim,
        num_hidden_layers=MODEL.num_layers,
        num_attention_heads=MODEL.num_heads,
        num_key_value_heads=MODEL.num_kv_heads,
        num_global_key_value_heads=MODEL.num_kv_heads,
        head_dim=MODEL.head_dim,
        global_head_dim=MODEL.global_head_dim,
        sliding_window=MODEL.window_size,
        attention_k_eq_v=MODEL.unified_kv,
        final_logit_softcapping=MODEL.logit_softcap,
        rms_norm_eps=MODEL.norm_eps,
        max_position_embeddings=131_072,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        enable_moe_block=False,
        tie_word_embeddings=True,
        pad_token_id=None,
        use_cache=False,
        attn_implementation=attention,
    )


def load(path: str, attention: str) -> Gemma4ForCausalLM:
    """A model with the weights in `path`.  Raises: ValueError unless every tensor is set once."""
    model = Gemma4ForCausalLM(build_config(attention)).to(torch.float32)
    weights = {name: torch.from_numpy(value.copy()) for name, value in np.load(path).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    left = [name for name in missing if name != "lm_head.weight" and "rotary" not in name]
    if left or unexpected:
        raise ValueError(f"not set: {left}; not known: {list(unexpected)}")
    model.tie_weights()
    return model


class Peer:
    """The methods that the parent asks for, as `ours.Ours` has them."""

    def __init__(self, attention: str, mode: str):
        self.attention, self.mode = attention, mode

    def load(self, path: str) -> int:
        """Remembers where the weights are; returns how many numbers are trained."""
        self.path = path
        return sum(p.numel() for p in load(path, self.attention).parameters())

    def describe(self, shape: list[int]) -> dict:
        """How this side runs."""
        del shape
        return {
            "library": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "threads": torch.get_num_threads(),
            "dtype": "float32",
            "attention": self.attention,
            "compile": "torch.compile, static shapes" if self.mode == "compile" else "eager",
        }

    def ceiling(self, count: int = 5) -> list[float]:
        """GFLOP/s of float32 matrix products, one a reading."""
        x = torch.ones(CEILING_SIZE, CEILING_SIZE)
        torch.mm(x, x)
        timed = readings(lambda: torch.mm(x, x), count)
        return [2e-9 * CEILING_SIZE**3 / seconds for seconds, _ in timed]

    def _model(self):
        torch._dynamo.reset()
        model = load(self.path, self.attention)
        run = torch.compile(model, dynamic=False) if self.mode == "compile" else model
        return model, run

    def prepare_train(self, shape: list[int], warmup: int, num_microbatches: int = 1) -> dict:
        """Builds and warms up; the loss before each warm-up step, from the starting weights."""
        model, run = self._model()
        model.train()
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": ADAMW["weight_decay"]},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=ADAMW["learning_rate"],
            betas=(ADAMW["beta1"], ADAMW["beta2"]),
            eps=ADAMW["eps"],
            fused=True,
        )
        parts = torch.from_numpy(bench.tokens(Shape(*shape))).long().chunk(num_microbatches)

        def step() -> float:
            total = 0.0
            for part in parts:
                loss = run(input_ids=part, labels=part).loss / len(parts)
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return total

        self.step = step
        return _warmed_up(step, warmup)

    def time_train(self, count: int) -> list[tuple[float, float]]:
        """(seconds, others' share) of each of `count` steps."""
        return readings(self.step, count)

    def prepare_forward(self, shape: list[int], warmup: int) -> dict:
        """Builds the forward loss of the starting weights and runs it."""
        model, run = self._model()
        model.eval()
        tokens = torch.from_numpy(bench.tokens(Shape(*shape))).long()

        @torch.no_grad()
        def forward() -> float:
            return run(input_ids=tokens, labels=tokens).loss.item()

        self.forward = forward
        return _warmed_up(forward, warmup)

    def time_forward(self, count: int) -> list[tuple[float, float]]:
        """(seconds, others' share) of each of `count` forwards."""
        return readings(self.forward, count)

    def release(self) -> None:
        """Drops what was prepared."""
        self.step = self.forward = None


def _warmed_up(function, count: int) -> dict:
    start = time.perf_counter()
    losses = [function()]
    first = time.perf_counter() - start
    losses += [function() for _ in range(count - 1)]
    return {"compile_seconds": first, "losses": losses}


if __name__ == "__main__":
    serve(Peer(*sys.argv[1:3]))
