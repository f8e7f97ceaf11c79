"""How many cheap layers for a global one? Ratios at one depth, which all periods divide.

python -m hybrid.ablate --config=configs/ablate_ratio.py --workdir=runs/ablate_ratio
python -m hybrid.ablate --config=configs/ablate_ratio.py:D --workdir=runs/ablate_ratio_d

The cheap layers are local ones of 16 tokens: L and G have one geometry, the same rotary encoding
and keys and values of their own, so that only the ratio changes. After the colon, any other letter:
D for Gated DeltaNet, at equal parameters, on text and on associative recall. Published: recall
rises with full layers up to about three linear ones for each (2507.06457).
"""

from hybrid.ablate import arms
from hybrid.ablate import config as ablate

NAMES = {"L": "local"}
RECALL = arms.mqar(context_length=32, num_steps=600) | {
    "training.batch_size": 32,
    "optimizer.learning_rate": 5e-3,
}


def cells(letter, most):
    """All of the letter, then fewer and fewer of them for a global layer, then none."""
    name = NAMES.get(letter, letter)
    ratios = [count for count in (7, 5, 3, 1) if count in most]
    return [
        {"name": f"all {name}", "model.pattern": letter, "model.last_layer": "any"},
        *({"name": f"{count}:1", "model.pattern": count * letter + "G"} for count in ratios),
        {"name": "all global", "model.pattern": "G"},
    ]


def get_config(letter: str = "L"):
    config = ablate.defaults("configs/micro.py")
    config.base.model.pattern = "G"
    config.base.model.num_layers = 24 if letter == "L" else 8
    config.base.model.window_size = 16
    config.base.model.d_model = 48
    config.base.model.num_heads = 3
    config.base.model.ffn_dim = 96
    config.base.model.global_head_dim = 0
    config.base.model.unified_kv = False
    config.base.model.global_rope_theta = 10_000.0
    config.base.model.global_rope_fraction = 1.0
    config.base.training.num_steps = 120

    config.cells = cells(letter, (7, 5, 3, 1) if letter == "L" else (7, 3, 1))
    config.baseline = [("model.pattern", "G")]
    if letter != "L":
        config.arms = [("text", {}), ("mqar", RECALL)]
        config.match = "params"
    config.seeds = (0, 1, 2)
    return config
