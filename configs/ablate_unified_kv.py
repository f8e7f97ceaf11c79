"""What does one projection for keys and values cost? It halves the global layers' cache.

python -m hybrid.ablate --config=configs/ablate_unified_kv.py --workdir=runs/ablate_unified_kv

Both cells have as many parameters: what the second projection needs is taken from ffn_dim.
"""

from hybrid.ablate import config as ablate


def get_config():
    config = ablate.defaults("configs/micro.py")
    config.base.model.pattern = "LG"

    config.axes = [("model.unified_kv", (True, False))]
    config.baseline = [("model.unified_kv", False)]
    config.match = "params"
    config.seeds = (0, 1, 2)
    return config
