"""MRCR: the n-th of several identical requests of a long conversation, repeated word by word.

python eval.py --config=configs/mrcr.py --pretrained=FOLDER --output=mrcr.json
python eval.py --config=configs/mrcr.py --pretrained=FOLDER \\
    --config.eval.retrieval.mrcr_paths="mrcr/**/*.parquet" --config.eval.retrieval.lengths=131072

Conversations are made by rule unless files in the public form are named, whose rows are then taken
up to the longest length.
"""

from hybrid import experiment


def get_config():
    config = experiment.defaults()
    config.eval.retrieval.tasks = ("mrcr",)
    config.eval.retrieval.lengths = (8192, 16_384, 32_768, 65_536, 131_072)
    config.eval.retrieval.num_samples = 100
    return config
