"""A small Hugging Face folder to break: config.json, one file of tensors, a tokenizer."""

import json
import pathlib

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from hybrid import model, pretrained
from hybrid.model.config import ModelConfig

CONFIG = ModelConfig(
    pattern="LG",
    num_layers=4,
    window_size=4,
    d_model=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    global_head_dim=8,
    ffn_dim=12,
    vocab_size=264,
    num_kv_shared_layers=2,
    layer_embedding_dim=4,
)


def params_of(config: ModelConfig = CONFIG, seed: int = 0):
    """Values that differ everywhere, without compiling an initialisation."""
    rng = np.random.default_rng(seed)
    noise = lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    return jax.tree.map(noise, model.abstract(config))


def write(folder: pathlib.Path, config: ModelConfig = CONFIG, **keys) -> pathlib.Path:
    """Writes the folder and returns it."""
    pretrained.write_folder(params_of(config), config, folder, "byte", **keys)
    return folder


def change_config(folder: pathlib.Path, **keys) -> None:
    """Sets keys of config.json; None removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for name, value in keys.items():
        values.pop(name, None)
        if value is not None:
            values[name] = value
    path.write_text(json.dumps(values))


def change_tensors(folder: pathlib.Path, change) -> None:
    """Rewrites the file with what `change` makes of its tensors."""
    path = folder / "model.safetensors"
    save_file(change(dict(load_file(path))), path)
