"""What should the other five layers be? Every mixer in place of L, at equal parameters and tokens.

python -m hybrid.ablate --config=configs/ablate_pattern.py --workdir=runs/ablate_pattern

Six layers, the last one global, on text, needles and associative recall. Local layers see 16
tokens, as much as the other mixers' states and blocks are small. The feed-forward's width makes the
parameters equal.
"""

from hybrid.ablate import arms
from hybrid.ablate import config as ablate

OTHERS = {
    "M": "Mamba-2",
    "W": "RWKV-7",
    "R": "RG-LRU",
    "D": "Gated DeltaNet",
    "K": "Kimi Delta",
    "S": "Longformer",
    "B": "BigBird",
}
CELLS = [
    {"name": "5 local : 1", "model.pattern": "LLLLLG"},
    {"name": "all global", "model.pattern": "G"},
    {"name": "all local", "model.pattern": "L", "model.last_layer": "any"},
    *(
        {"name": f"5 {name} : 1", "model.pattern": 5 * letter + "G"}
        for letter, name in OTHERS.items()
    ),
]


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.window_size = 16
    config.base.model.num_kv_heads = 4
    config.base.model.global_head_dim = 0
    config.base.model.unified_kv = False
    config.base.training.num_steps = 150

    config.cells = CELLS
    config.arms = [
        ("text", {}),
        ("needle", arms.needle(4, 8, 15, 24, 36, 48, 72, 96, 120)),
        ("mqar", arms.mqar()),
    ]
    config.match = "params"
    config.seeds = (0, 1, 2)
    return config
