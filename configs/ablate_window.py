"""Which window? Five of them, on text and on needles; about half an hour on 2 CPU cores.

python -m hybrid.ablate --config=configs/ablate_window.py --workdir=runs/ablate_window

On text the small hybrid LLLLLG is trained, whose last layer sees everything. Needles are looked
for by four local layers alone, which see as far as their windows carry: m·(w - 1) + 1 tokens.
"""

from hybrid.ablate import arms
from hybrid.ablate import config as ablate

FULL = 256  # a window of the whole context

NEEDLE = arms.needle(2, 5, 7, 12, 15, 24, 40, 60, 96, num_steps=200) | {
    "model.pattern": "L",
    "model.last_layer": "any",
    "model.num_layers": 4,
    "model.d_model": 32,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "model.ffn_dim": 64,
    "training.batch_size": 64,
}


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.training.num_steps = 200

    config.axes = [("model.window_size", (8, 16, 32, 64, FULL))]
    config.baseline = [("model.window_size", FULL)]
    config.arms = [("text", {}), ("needle", NEEDLE)]
    config.seeds = (0, 1, 2)
    return config
