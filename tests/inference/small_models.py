"""Small models of every layer kind and switch, their weights, tokens and plain logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hybrid import model
from hybrid.model.config import ModelConfig

WINDOW, TIME, BATCH = 4, 14, 2
BASE = ModelConfig(
    pattern="LG",
    num_layers=5,
    last_layer="force_global",
    window_size=WINDOW,
    d_model=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    global_head_dim=16,
    ffn_dim=24,
    vocab_size=40,
)
UNIFIED = {"unified_kv": True}
SWITCHES = {
    "separate keys and values": {},
    "unified": UNIFIED,
    "unified, all pairs turn": UNIFIED | {"global_rope_fraction": 1.0},
    "no positions in global layers": UNIFIED | {"global_rope_fraction": 0.0},
    "reused keys and values": {"num_kv_shared_layers": 3},
    "unified ones reused from inside a period": UNIFIED
    | {"pattern": "LLG", "num_layers": 6, "num_kv_shared_layers": 2},
    "per-layer embeddings": {"layer_embedding_dim": 4},
    "experts": {"num_experts": 4, "num_active_experts": 2, "expert_dim": 8},
    "sinks, softcap, scale": {
        "attention_sinks": True, "attention_softcap": 5.0, "attention_scale": 0.5,
    },
    "no norms of queries and keys": {"qk_norm": False, "v_norm": False, "attention_scale": 0.3},
    "a gate a head, no positions in local layers": {"attention_gate": "head", "rope_fraction": 0.0},
    "gates an element": UNIFIED | {"attention_gate": "element"},
    "chunks": {"local_attention": "chunk"},
    "learned positions": {"learned_positions": 32},
    "all local": {"pattern": "L", "last_layer": "any"},
    "two windows": {"pattern": "LLG", "num_layers": 6, "window_sizes": (2, 7, 0)},
}  # fmt: skip
LAYOUTS = ("value", "value_and_rotated", "keys_and_values")
CASES = [
    (name, layout)
    for name, keys in SWITCHES.items()
    for layout in (LAYOUTS if keys.get("unified_kv") else LAYOUTS[:1])
]


def config_of(name: str, dtype: str = "float64") -> ModelConfig:
    """The model of a case."""
    return dataclasses.replace(BASE, dtype=dtype, **SWITCHES[name])


@functools.cache
def params_of(config: ModelConfig):
    """Weights that differ everywhere, norms and scalars included."""
    rng = np.random.default_rng(0)

    def noise(leaf):
        return jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(noise, model.abstract(config))


def tokens_of(config: ModelConfig, batch: int = BATCH, time: int = TIME, seed: int = 0):
    """int32 [batch, time]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, config.vocab_size, (batch, time)).astype(np.int32)


@functools.cache
def _forward(config: ModelConfig):
    return jax.jit(functools.partial(model.logits, config))


def logits_of(config: ModelConfig, tokens) -> np.ndarray:
    """The plain forward's logits [batch, time, vocab]."""
    return np.asarray(_forward(config)(params_of(config), tokens))
