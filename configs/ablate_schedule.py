"""Short windows first? A schedule against the final window from the start, for equal FLOPs.

python -m hybrid.ablate --config=configs/ablate_schedule.py --workdir=runs/ablate_schedule

All layers are local, so that a short window saves most; all are evaluated at window 256.
"""

from hybrid.ablate import config as ablate


def cell(name, *schedule):
    """(share of the steps, window) of each stage; the last window is the model's."""
    last = schedule[-1][1]
    return {"name": name, "training.window_schedule": schedule, "model.window_size": last}


CELLS = [
    cell("256", (1.0, 256)),
    cell("64 then 256", (0.5, 64), (0.5, 256)),
    cell("16, 64, 256", (0.33, 16), (0.33, 64), (0.34, 256)),
]


def get_config():
    config = ablate.defaults("configs/micro.py:local")

    config.cells = CELLS
    config.match = "flops"
    config.seeds = (0, 1, 2)
    return config
