"""Goes on from a trained model: its `model.*` and tokenizer come from the folder.

python train.py --config=configs/finetune.py --config.init_from=FOLDER --workdir=runs/finetune \
    --config.data.source=text --config.data.paths='notes/**/*.txt'
python train.py --config=configs/finetune.py:lora ...          adapters of rank 16, base frozen

FOLDER is a run's workdir or a Hugging Face folder of Gemma 2, 3 or 4.
"""

from hybrid import experiment


def get_config(variant: str = "whole"):
    config = experiment.defaults()
    config.inherit_model = True
    config.lora.rank = {"whole": 0, "lora": 16}[variant]

    config.training.num_steps = 200
    config.training.batch_size = 8
    config.training.context_length = 1024
    config.optimizer.learning_rate = {"whole": 1e-5, "lora": 2e-4}[variant]
    config.optimizer.weight_decay = 0.0
    config.eval.every_steps = 50
    config.eval.max_tokens = 200_000
    config.checkpoint.every_steps = 100
    return config
