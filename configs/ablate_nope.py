"""Do global layers need positions? Rotary, p-RoPE and none (NoPE), on text and far past training.

python -m hybrid.ablate --config=configs/ablate_nope.py --workdir=runs/ablate_nope

Local layers turn all pairs throughout, and order reaches the global ones through them. Trained at
256 tokens, evaluated at 256, 512 and 1024; needles at distances within the trained length.
"""

from hybrid.ablate import arms
from hybrid.ablate import config as ablate

CELLS = [
    {"name": "rotary", "model.global_rope_fraction": 1.0},
    {"name": "a quarter", "model.global_rope_fraction": 0.25},
    {"name": "none", "model.global_rope_fraction": 0.0},
]


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.pattern = "LLLG"
    config.base.model.num_layers = 4
    config.base.training.num_steps = 200

    config.cells = CELLS
    config.arms = [
        ("text", {"eval.context_length": (256, 512, 1024)}),
        ("needle", arms.needle(4, 15, 24, 48, 96, 120)),
    ]
    config.seeds = (0, 1, 2)
    return config
