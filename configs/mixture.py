"""The model of configs/micro.py on three parts of the standard library, mixed 7 : 2 : 1.

python train.py --config=configs/mixture.py --workdir=runs/mixture
python eval.py --workdir=runs/mixture                             # the loss of each source
"""

import pathlib
import sysconfig

import ml_collections

from hybrid.pages import load_page

LIBRARY = pathlib.Path(sysconfig.get_paths()["stdlib"])
PACKAGES = ("asyncio", "email", "http", "json", "logging", "unittest", "xml")


def get_config(variant: str = "hybrid"):
    config = ml_collections.ConfigDict(load_page(f"configs/micro.py:{variant}"), type_safe=False)

    config.data.mixture = [
        {"name": "modules", "weight": 0.7, "paths": [f"{LIBRARY}/*.py"]},
        {"name": "packages", "weight": 0.2, "paths": [f"{LIBRARY}/{p}/*.py" for p in PACKAGES]},
        {"name": "tables", "weight": 0.1, "paths": [f"{LIBRARY}/encodings/*.py"], "epochs": 2},
    ]
    return config
