"""The `model.` section: the shape of the network, in the field's names.

`pattern.py` turns it into one `LayerSpec` a layer; nothing else decides what a layer is.
"""

import dataclasses
from typing import ClassVar

from hybrid.config import ConfigError, OpenSection, key

DTYPES = ("float32", "bfloat16", "float64")
REMAT = ("none", "dots", "full")
# What a layer names for the backward: projections, attention's result with its sums, and the
# normed input of the feed-forward.
REMAT_NAMES = ("qkv", "attention_out", "ffn_in")
LAST_LAYER = ("require_global", "force_global", "any")
# Keys that say how a model runs; its parameters are the same under all of them.
RUNTIME_KEYS = ("dtype", "remat", "remat_save", "remat_offload", "unroll", "attention")
# Projections of attention and feed-forward that can have an adapter.
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYER_SCALAR = ("none", "fixed", "trained")
LOCAL_ATTENTION = ("window", "chunk")
ATTENTION_GATES = ("none", "head", "element")


@dataclasses.dataclass(frozen=True)
class ModelConfig(OpenSection):
    """Keys under `model.`; raises ConfigError for combinations that can't be built.

    Mixers other than attention have sections of their own, `SECTIONS` by name.
    """

    SECTIONS: ClassVar[dict[str, type]] = {}

    pattern: str = key(
        "LLLLLG",
        "a letter a layer of one period: L local, G global, and the mixers of docs/mixers.md",
    )
    last_layer: str = key(
        "require_global",
        "what to do when the last layer would not be global",
        choices=LAST_LAYER,
    )
    num_layers: int = key(
        6, "depth; the pattern repeats and is cut at it", at_least=1, at_most=10_000
    )
    window_size: int = key(64, "tokens a local layer sees, the token itself counted", at_least=1)
    window_sizes: tuple[int, ...] = key(
        (),
        "a window for each letter of the period (0 where it has none); "
        "empty: window_size everywhere",
    )
    d_model: int = key(128, "width of the residual stream", at_least=1)
    num_heads: int = key(4, "query heads", at_least=1)
    num_kv_heads: int = key(1, "key/value heads of local layers", at_least=1)
    num_global_kv_heads: int = key(0, "the same of global layers; 0: as local", at_least=0)
    head_dim: int = key(32, "width of a head, even", at_least=2)
    global_head_dim: int = key(0, "the same of global layers; 0: as local", at_least=0)
    unified_kv: bool = key(False, "global layers project keys and values once (K = V)")
    num_kv_shared_layers: int = key(
        0, "last layers that reuse the keys and values of the last owner of their kind", at_least=0
    )
    qk_norm: bool = key(True, "RMS norms with a weight on queries and keys")
    v_norm: bool = key(True, "RMS norm without a weight on values")
    attention_scale: float = key(
        1.0, "multiplies the scores; with QK-norm the query norm's weight can do it", more_than=0
    )
    attention_softcap: float = key(0.0, "scores become c*tanh(scores/c); 0: off", at_least=0)
    attention_sinks: bool = key(
        False, "a learned logit a head joins the softmax's denominator, so a head can look away"
    )
    attention_gate: str = key(
        "none",
        "sigmoid gate on attention's result, before o_proj: none, head (one a head), element",
        choices=ATTENTION_GATES,
    )
    local_attention: str = key(
        "window",
        "a local layer sees the last window_size tokens (window), or those of its own chunk of "
        "window_size tokens, counted from the document's start (chunk)",
        choices=LOCAL_ATTENTION,
    )
    learned_positions: int = key(
        0, "positions with a learned vector that joins the embedding; 0: none", at_least=0
    )
    rope_theta: float = key(10_000.0, "base of the rotary wavelengths, local", more_than=0)
    rope_fraction: float = key(
        1.0, "fraction of the rotary pairs that turn in local layers", at_least=0, at_most=1
    )
    global_rope_theta: float = key(1_000_000.0, "the same of global layers", more_than=0)
    global_rope_fraction: float = key(
        0.25,
        "p-RoPE: fraction of the rotary pairs that turn in global layers",
        at_least=0,
        at_most=1,
    )
    global_rope_factor: float = key(
        1.0, "divides all frequencies of global layers (linear scaling)", more_than=0
    )
    ffn_dim: int = key(512, "width of the gated feed-forward", at_least=1)
    kv_shared_ffn_dim: int = key(
        0, "the same of layers that reuse keys and values; 0: ffn_dim", at_least=0
    )
    num_experts: int = key(0, "experts beside the feed-forward; 0: none", at_least=0)
    num_active_experts: int = key(0, "experts that each token is sent to", at_least=0)
    expert_dim: int = key(0, "width of an expert", at_least=0)
    layer_embedding_dim: int = key(
        0, "width of per-layer embeddings: each layer adds its own of a token; 0: none", at_least=0
    )
    vocab_size: int = key(264, "rows of the embedding, at least the tokenizer's ids", at_least=2)
    logit_softcap: float = key(30.0, "final logits become c*tanh(logits/c); 0: off", at_least=0)
    norm_eps: float = key(1e-6, "epsilon of every RMS norm", more_than=0)
    norm_offset: float = key(0.0, "added to the weight of every RMS norm: 1 in Gemma 2 and 3")
    layer_scalar: str = key(
        "fixed",
        "a scalar times each layer's output: fixed (as it starts or was read), trained, none",
        choices=LAYER_SCALAR,
    )
    init: str = key(
        "scaled",
        "initialisation: scaled (q_norm at head_dim^-0.5, depth-scaled outputs) or naive",
        choices=("scaled", "naive"),
    )
    dtype: str = key("float32", "compute dtype; parameters stay float32 or wider")
    remat: str = key("none", "recompute in the backward, per layer", choices=REMAT)
    remat_save: tuple[str, ...] = key(
        (), "kept for the backward all the same: some of " + ", ".join(REMAT_NAMES)
    )
    remat_offload: tuple[str, ...] = key((), "the same, kept in the host's memory")
    unroll: bool = key(False, "run layers as a Python loop instead of a scan (same numbers)")
    attention: str = key("auto", "attention implementation: auto or a name, forced for every layer")

    def __post_init__(self):
        if self.dtype not in DTYPES:
            problem, accepted = "is not a compute dtype served here", "one of " + ", ".join(DTYPES)
            raise ConfigError("dtype", problem, self.dtype, accepted)
        for name in ("num_kv_heads", "num_global_kv_heads"):
            check_divides(name, getattr(self, name) or 1, "model.num_heads", self.num_heads)
        for name in ("head_dim", "global_head_dim"):
            if getattr(self, name) % 2:
                raise ConfigError(name, "must be even (rotary pairs)", getattr(self, name))
        if self.window_sizes and len(self.window_sizes) != len(self.pattern):
            problem = f"must have one window a letter of model.pattern ({self.pattern})"
            accepted = f"{len(self.pattern)} of them"
            raise ConfigError("window_sizes", problem, self.window_sizes, accepted)
        self._check_kv()
        self._check_experts()
        self._check_remat()

    def _check_remat(self) -> None:
        for name in ("remat_save", "remat_offload"):
            got = getattr(self, name)
            if unknown := set(got) - set(REMAT_NAMES):
                accepted = "some of " + ", ".join(REMAT_NAMES)
                raise ConfigError(name, "is nothing that a layer names", min(unknown), accepted)
            if got and self.remat == "none":
                raise ConfigError(name, "is set although model.remat is none", got)
        if both := set(self.remat_save) & set(self.remat_offload):
            raise ConfigError("remat_offload", "is in model.remat_save as well", min(both))

    def _check_kv(self) -> None:
        if self.unified_kv and not (self.qk_norm and self.v_norm):
            name = "v_norm" if self.qk_norm else "qk_norm"
            problem = "must be on with model.unified_kv: the key is made from the normed value"
            raise ConfigError(name, problem, False)
        if self.num_kv_shared_layers >= self.num_layers:
            problem = f"must leave an owner among the {self.num_layers} layers"
            raise ConfigError("num_kv_shared_layers", problem, self.num_kv_shared_layers)
        if self.kv_shared_ffn_dim and not self.num_kv_shared_layers:
            problem = "is set although model.num_kv_shared_layers is 0"
            raise ConfigError("kv_shared_ffn_dim", problem, self.kv_shared_ffn_dim, "0")

    def _check_experts(self) -> None:
        for name in ("num_active_experts", "expert_dim"):
            if bool(getattr(self, name)) != bool(self.num_experts):
                problem = f"must be 0 exactly where model.num_experts ({self.num_experts}) is"
                raise ConfigError(name, problem, getattr(self, name))
        if self.num_active_experts > self.num_experts:
            problem = f"must not exceed model.num_experts ({self.num_experts})"
            raise ConfigError("num_active_experts", problem, self.num_active_experts)


def check_divides(name: str, heads: int, whole_name: str, whole: int) -> None:
    """Raises: ConfigError by `name` where so many heads can't each serve as many of the `whole`."""
    if whole % heads:
        fits = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        problem = f"must divide {whole_name} ({whole})"
        raise ConfigError(name, problem, heads, f"try one of {fits}")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Keys under `lora.`; raises ConfigError for modules that can't be adapted."""

    rank: int = key(0, "rank of the adapters; 0: none, the model itself is trained", at_least=0)
    modules: tuple[str, ...] = key(
        LORA_MODULES, "projections that get an adapter, of attention and feed-forward"
    )

    def __post_init__(self):
        for name in self.modules:
            if name not in LORA_MODULES:
                problem, accepted = "has no adapter", "some of " + ", ".join(LORA_MODULES)
                raise ConfigError("modules", problem, name, accepted)
        if self.rank and not self.modules:
            raise ConfigError("modules", "is empty although lora.rank is set")
