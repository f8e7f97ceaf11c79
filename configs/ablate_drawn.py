"""Do windows drawn anew each step help? A long one, a short one, and both by the toss of a coin.

python -m hybrid.ablate --config=configs/ablate_drawn.py --workdir=runs/ablate_drawn

All are evaluated at window 64, the last tenth of every training has it. Published, between layers
of xLSTM: better at short and at long contexts than a fixed window, since a short one leaves more
for the recurrence to learn (2509.24552, SWAX). Here there are local layers alone.
"""

from hybrid.ablate import arms
from hybrid.ablate import config as ablate

CELLS = [
    {"name": "64"},
    {"name": "8, then 64", "training.window_schedule": ((0.9, 8), (0.1, 64))},
    {"name": "8 or 64", "training.window_choices": ((0.5, 8), (0.5, 64))},
]


def get_config():
    config = ablate.defaults("configs/micro.py:local")
    config.base.model.num_layers = 4
    config.base.model.window_size = 64
    config.base.training.num_steps = 200

    config.cells = CELLS
    config.arms = [("text", {}), ("needle", arms.needle(4, 8, 15, 24, 48, 96, 120))]
    config.seeds = (0, 1, 2)
    return config
