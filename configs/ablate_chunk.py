"""A sliding window or chunks? Both as the local layers of a hybrid, and alone.

python -m hybrid.ablate --config=configs/ablate_chunk.py --workdir=runs/ablate_chunk

Chunked layers (Llama 4's local kind) see their own 32 tokens' chunk and nothing of the one before,
so a stack of them reaches no further than one layer; windows overlap, and reach adds up by layer.
"""

from hybrid.ablate import arms
from hybrid.ablate import config as ablate

ALONE = {"model.pattern": "L", "model.last_layer": "any"}
CHUNK = {"model.local_attention": "chunk"}
CELLS = [
    {"name": "window, 3:1"},
    {"name": "chunk, 3:1", **CHUNK},
    {"name": "window alone", **ALONE},
    {"name": "chunk alone", **ALONE, **CHUNK},
]


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.pattern = "LLLG"
    config.base.model.num_layers = 4
    config.base.training.num_steps = 200

    config.cells = CELLS
    config.arms = [("text", {}), ("needle", arms.needle(4, 15, 24, 48, 96, 120))]
    config.seeds = (0, 1, 2)
    return config
