"""Do long windows keep a global layer from learning to look back? Needles beyond all of them.

python -m hybrid.ablate --config=configs/ablate_onset.py --workdir=runs/ablate_onset

Three local layers and a global one; what is nearer than a stack's reach its windows can hand on, so
only the distances past it ask the global layer. Published: larger windows delay retrieval heads
(2606.15378).
"""

from hybrid.ablate import arms
from hybrid.ablate import config as ablate


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.pattern = "LLLG"
    config.base.model.num_layers = 4

    config.axes = [("model.window_size", (4, 8, 16, 32))]
    config.arms = [("needle", arms.needle(3, 8, 15, 24, 40, 60, 100, 120, num_steps=200))]
    config.baseline = [("model.window_size", 32)]
    config.seeds = (0, 1, 2)
    return config
