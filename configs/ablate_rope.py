"""How much of a global layer's heads should turn? Rotary fractions, and lengths past training.

python -m hybrid.ablate --config=configs/ablate_rope.py --workdir=runs/ablate_rope

Trained at 256 tokens and evaluated at 256, 512 and 1024. Fraction 0 is no position encoding
(NoPE) in the global layers, 1 is plain RoPE; every second layer is global.
"""

from hybrid.ablate import config as ablate


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.pattern = "LG"
    config.base.training.num_steps = 200
    config.base.eval.context_length = (256, 512, 1024)

    config.axes = [("model.global_rope_fraction", (0.0, 0.25, 0.5, 0.75, 1.0))]
    config.baseline = [("model.global_rope_fraction", 1.0)]
    config.seeds = (0, 1, 2)
    return config
