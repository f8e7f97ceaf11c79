"""The benchmark model, its starting weights and its tokens: equal on both sides.

A small Gemma 4: `LLLLLG`, unified keys and values on the global layer, 6,102,144 trained
parameters. This file imports neither jax nor torch, so that a worker loads only what it times.

Read next: `ours.py` and `peer.py`, the two workers.
"""

from typing import Any, NamedTuple

import numpy as np

from hybrid.model.config import ModelConfig
from hybrid.model.pattern import plan_layers

MODEL = ModelConfig(
    pattern="LLLLLG",
    num_layers=6,
    window_size=128,
    d_model=256,
    num_heads=4,
    num_kv_heads=1,
    head_dim=64,
    global_head_dim=128,
    unified_kv=True,
    ffn_dim=1024,
    vocab_size=1024,
    logit_softcap=30.0,
    dtype="float32",
)
NUM_PARAMS = 6_102_144  # layer scalars, which are not trained, left out
ADAMW = {"learning_rate": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}


class Shape(NamedTuple):
    """Rows and tokens a row of one step."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.rows * self.length

    @property
    def name(self) -> str:
        """As tables print it: rows x tokens a row."""
        return f"{self.rows}x{self.length}"


TRAIN_SHAPES = (Shape(16, 512), Shape(4, 2048), Shape(1, 8192))


def tokens(shape: Shape) -> np.ndarray:
    """int32 [rows, length], uniform over the vocabulary; id 0 (padding to some) is not used."""
    rng = np.random.default_rng(0)
    return rng.integers(1, MODEL.vocab_size, shape, dtype=np.int32)


def shaken(params: Any) -> Any:
    """Our initial parameters (nested dicts of arrays) with every norm and scalar off its start.

    A norm or a scalar that a mapping mixes up or forgets then moves the loss.
    """
    rng = np.random.default_rng(1)

    def walk(tree, name=""):
        if isinstance(tree, dict):
            return {key: walk(child, key) for key, child in sorted(tree.items())}
        leaf = np.asarray(tree)
        if name in ("scale", "layer_scalar"):
            leaf = leaf * rng.uniform(0.8, 1.2, leaf.shape).astype(leaf.dtype)
        return leaf

    return walk(params)


# Ours -> transformers' names below `model.layers.N.`
_NORMS = {
    "pre_mixer_norm": "input_layernorm",
    "post_mixer_norm": "post_attention_layernorm",
    "pre_ffn_norm": "pre_feedforward_layernorm",
    "post_ffn_norm": "post_feedforward_layernorm",
}


def peer_weights(params: Any) -> dict[str, np.ndarray]:
    """Our parameters by the names and in the layouts of Gemma4ForCausalLM's state_dict.

    Linear weights turn from [in, out] to [out, in], heads flattened.
    """
    plan = plan_layers(MODEL)
    weights = {
        "model.embed_tokens.weight": np.asarray(params["embedder"]["embedding"]),
        "model.norm.weight": np.asarray(params["final_norm"]["scale"]),
    }
    for layer, spec in enumerate(plan.layers()):
        segment, run, row = plan.locate(layer)
        ours = _row(params["segments"][segment][run], row)
        theirs = _layer(ours, has_v=not spec.mixer.unified_kv)
        weights |= {f"model.layers.{layer}.{name}": value for name, value in theirs.items()}
    return weights


def _row(tree: Any, row: int) -> Any:
    if isinstance(tree, dict):
        return {name: _row(child, row) for name, child in tree.items()}
    return np.asarray(tree)[row]


def _layer(ours: Any, has_v: bool) -> dict[str, np.ndarray]:
    mixer, width = ours["mixer"], MODEL.d_model
    theirs = {f"{name}.weight": ours[norm]["scale"] for norm, name in _NORMS.items()}
    theirs["layer_scalar"] = ours["layer_scalar"].reshape(1)
    for name in ("q_norm", "k_norm"):
        theirs[f"self_attn.{name}.weight"] = mixer[name]["scale"]
    for name in ("q_proj", "k_proj", *(["v_proj"] if has_v else [])):
        theirs[f"self_attn.{name}.weight"] = mixer[name]["kernel"].reshape(width, -1).T
    theirs["self_attn.o_proj.weight"] = mixer["o_proj"]["kernel"].reshape(-1, width).T
    for name in ("gate_proj", "up_proj", "down_proj"):
        theirs[f"mlp.{name}.weight"] = ours["feed_forward"][name]["kernel"].T
    return theirs
