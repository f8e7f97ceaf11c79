"""How should layers know the order? Rotary pairs, learned vectors, both, or the mask alone.

python -m hybrid.ablate --config=configs/ablate_positions.py --workdir=runs/ablate_positions

Learned vectors (GPT-2's) join the embedding, one a position of the trained 256; without any
(NoPE, 2305.19466) causality and the windows' edges tell what order there is.
"""

from hybrid.ablate import config as ablate

NO_ROTATION = {"model.rope_fraction": 0.0, "model.global_rope_fraction": 0.0}
LEARNED = {"model.learned_positions": 256}
CELLS = [
    {"name": "rotary"},
    {"name": "learned", **NO_ROTATION, **LEARNED},
    {"name": "both", **LEARNED},
    {"name": "none", **NO_ROTATION},
]


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.pattern = "LLLG"
    config.base.model.num_layers = 4
    config.base.training.num_steps = 200

    config.cells = CELLS
    config.seeds = (0, 1, 2)
    return config
