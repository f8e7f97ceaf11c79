"""How many local layers for a global one? Six ratios at 24 thin layers, which all periods divide.

python -m hybrid.ablate --config=configs/ablate_ratio.py --workdir=runs/ablate_ratio

L and G have one geometry, the same rotary encoding and keys and values of their own, so that only
the ratio changes: a local layer is a global one that sees 16 tokens.
"""

from hybrid.ablate import config as ablate

CELLS = [
    {"name": "all local", "model.pattern": "L", "model.last_layer": "any"},
    {"name": "7:1", "model.pattern": "LLLLLLLG"},
    {"name": "5:1", "model.pattern": "LLLLLG"},
    {"name": "3:1", "model.pattern": "LLLG"},
    {"name": "1:1", "model.pattern": "LG"},
    {"name": "all global", "model.pattern": "G"},
]


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.num_layers = 24
    config.base.model.window_size = 16
    config.base.model.d_model = 48
    config.base.model.num_heads = 3
    config.base.model.ffn_dim = 96
    config.base.model.global_head_dim = 0
    config.base.model.unified_kv = False
    config.base.model.global_rope_theta = 10_000.0
    config.base.model.global_rope_fraction = 1.0
    config.base.training.num_steps = 120

    config.cells = CELLS
    config.baseline = [("model.pattern", "G")]
    config.seeds = (0, 1, 2)
    return config
