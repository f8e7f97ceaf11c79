"""A trained model under other windows, without training: as Gemma 2's report did at inference.

python train.py --config=configs/tiny.py --workdir=runs/demo          (or `make demo`)
python -m hybrid.ablate --config=configs/ablate_window_eval.py --workdir=runs/window_eval

`--config.trained=DIR` takes another run, whose text, model and tokenizer are its own, or a Hugging
Face folder with `--config.base.data.source=text --config.base.data.paths=FILES`.
"""

from hybrid.ablate import config as ablate


def get_config():
    config = ablate.defaults()
    config.trained = "runs/demo"
    config.base.eval.max_tokens = 131_072

    config.axes = [("model.window_size", (4, 8, 16, 32, 64, 128, 256))]
    config.baseline = [("model.window_size", 64)]
    return config
