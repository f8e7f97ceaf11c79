"""One needle by length and depth: a table and its heat map, beside --output.

python eval.py --config=configs/needles.py --pretrained=FOLDER --output=needles.json
python eval.py --config=configs/needles.py:keys --workdir=runs/NAME --output=needles.json

`noise` (the default) and `essay` are text, at least some 600 bytes long; `keys` are ids of
data.needle without text, for small models that were trained on that source.
"""

from hybrid import experiment

LENGTHS = {
    "noise": (4096, 8192, 16_384, 32_768, 65_536, 131_072),
    "essay": (4096, 8192, 16_384, 32_768, 65_536, 131_072),
    "keys": (32, 64, 128, 256, 512),
}


def get_config(haystack: str = "noise"):
    config = experiment.defaults()
    config.eval.retrieval.tasks = (f"needle_{haystack}",)
    config.eval.retrieval.lengths = LENGTHS[haystack]
    config.eval.retrieval.depths = tuple(12.5 * place for place in range(9))
    config.eval.retrieval.num_samples = 100
    return config
