"""The `model.` section: the shape of the network, in the field's names.

`pattern.py` turns it into one `LayerSpec` a layer; nothing else decides what a layer is.
"""

import dataclasses

from hybrid.config import ConfigError, key

DTYPES = ("float32", "bfloat16", "float64")
REMAT = ("none", "dots", "full")
LAST_LAYER = ("require_global", "force_global", "any")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Keys under `model.`; raises ConfigError for combinations that can't be built."""

    pattern: str = key("LLLLLG", "a letter a layer of one period: L local, G global")
    last_layer: str = key(
        "require_global",
        "what to do when the last layer would not be global",
        choices=LAST_LAYER,
    )
    num_layers: int = key(6, "depth; the pattern repeats and is cut at it", at_least=1)
    window_size: int = key(64, "tokens a local layer sees, the token itself counted", at_least=1)
    window_sizes: tuple[int, ...] = key(
        (), "a window for each letter of the period (0 at G); empty: window_size everywhere"
    )
    window_schedule: tuple[tuple[float, int], ...] = key(
        (),
        "windows in training: (share of the steps, window) one after the other, shares summing "
        "to 1; the last window is the model's and sets window_size",
    )
    d_model: int = key(128, "width of the residual stream", at_least=1)
    num_heads: int = key(4, "query heads", at_least=1)
    num_kv_heads: int = key(1, "key/value heads of local layers", at_least=1)
    num_global_kv_heads: int = key(0, "the same of global layers; 0: as local", at_least=0)
    head_dim: int = key(32, "width of a head, even", at_least=2)
    global_head_dim: int = key(0, "the same of global layers; 0: as local", at_least=0)
    unified_kv: bool = key(False, "global layers project keys and values once (K = V)")
    rope_theta: float = key(10_000.0, "base of the rotary wavelengths, local", more_than=0)
    global_rope_theta: float = key(1_000_000.0, "the same of global layers", more_than=0)
    global_rope_fraction: float = key(
        0.25,
        "p-RoPE: fraction of the rotary pairs that turn in global layers",
        at_least=0,
        at_most=1,
    )
    ffn_dim: int = key(512, "width of the gated feed-forward", at_least=1)
    vocab_size: int = key(264, "rows of the embedding, at least the tokenizer's ids", at_least=2)
    logit_softcap: float = key(30.0, "final logits become c*tanh(logits/c); 0: off", at_least=0)
    attention_softcap: float = key(0.0, "the same for attention scores; 0: off", at_least=0)
    norm_eps: float = key(1e-6, "epsilon of every RMS norm", more_than=0)
    train_layer_scalar: bool = key(False, "train each layer's output scalar (else it stays 1)")
    init: str = key(
        "scaled",
        "initialisation: scaled (q_norm at head_dim^-0.5, depth-scaled outputs) or naive",
        choices=("scaled", "naive"),
    )
    dtype: str = key("float32", "compute dtype; parameters stay float32 or wider")
    remat: str = key("none", "recompute in the backward, per layer", choices=REMAT)
    unroll: bool = key(False, "run layers as a Python loop instead of a scan (same numbers)")
    attention: str = key("auto", "attention implementation: auto or a name, forced for every layer")

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ConfigError(
                "dtype",
                "is not a compute dtype served here",
                self.dtype,
                "one of " + ", ".join(DTYPES),
            )
        self._check_heads("num_kv_heads", self.num_kv_heads)
        if self.num_global_kv_heads:
            self._check_heads("num_global_kv_heads", self.num_global_kv_heads)
        for name in ("head_dim", "global_head_dim"):
            if getattr(self, name) % 2:
                raise ConfigError(name, "must be even (rotary pairs)", getattr(self, name))
        self._check_windows()
        self._check_schedule()
        if self.window_schedule:
            object.__setattr__(self, "window_size", self.window_schedule[-1][1])

    def _check_heads(self, name: str, kv_heads: int) -> None:
        if self.num_heads % kv_heads:
            fits = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            raise ConfigError(
                name,
                f"must divide model.num_heads ({self.num_heads})",
                kv_heads,
                f"try one of {', '.join(map(str, fits))}",
            )

    def _check_windows(self) -> None:
        if not self.window_sizes:
            return
        if len(self.window_sizes) != len(self.pattern):
            raise ConfigError(
                "window_sizes",
                f"must have one window a letter of model.pattern ({self.pattern})",
                self.window_sizes,
                f"{len(self.pattern)} of them",
            )
        for letter, window in zip(self.pattern, self.window_sizes, strict=True):
            if letter == "G" and window != 0:
                raise ConfigError("window_sizes", "must be 0 at a G", self.window_sizes)
            if letter == "L" and window < 1:
                raise ConfigError("window_sizes", "must be at least 1 at an L", self.window_sizes)

    def _check_schedule(self) -> None:
        if not self.window_schedule:
            return
        shares, windows = zip(*self.window_schedule, strict=True)
        if self.window_sizes:
            problem = "can't be combined with model.window_sizes"
            raise ConfigError("window_schedule", problem, self.window_schedule)
        if min(windows) < 1:
            problem = "must have windows of at least 1"
            raise ConfigError("window_schedule", problem, self.window_schedule)
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            problem = "must have shares above 0 that sum to 1"
            raise ConfigError("window_schedule", problem, self.window_schedule)
