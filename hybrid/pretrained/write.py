"""A model as a Hugging Face folder: config.json, safetensors, tokenizer; whole or not at all."""

import collections
import json
import math
import pathlib
import shutil
import tempfile

import jax
import numpy as np

from hybrid import model
from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.pretrained import names, tensors
from hybrid.pretrained.config_in import CONFIG
from hybrid.pretrained.config_out import hugging_face_config
from hybrid.pretrained.names import Row
from hybrid.pretrained.tokenizer import write_tokenizer

PREFIX = "model."
MOST_BYTES = 5 * 10**9  # of a file


def write_folder(
    params: model.Params,
    config: ModelConfig,
    folder: pathlib.Path,
    tokenizer: str,
    *,
    most_bytes: int = MOST_BYTES,
) -> None:
    """Writes a folder that transformers loads; tensors have the parameters' dtype.

    Args:
      tokenizer: `byte`, a tokenizer.json or a folder with one.
      most_bytes: of a file of tensors, larger single tensors aside.
    Raises: ConfigError for a folder that isn't empty, or a model that transformers cannot be.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("output", "must be new or an empty folder", str(folder))
    dtype = params["embedder"]["embedding"].dtype
    values = hugging_face_config(config, dtype.name)
    parts = collections.defaultdict(list)
    for row in names.rows(config):
        parts[PREFIX + row.name].append(row)
    sizes = [(n, math.prod(rows[0].file_shape) * dtype.itemsize) for n, rows in parts.items()]

    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        ids = write_tokenizer(tokenizer, beside)
        largest = max(ids.values(), default=0)
        if largest >= config.vocab_size:
            problem = f"is too small for the tokenizer's special id {largest}"
            raise ConfigError("model.vocab_size", problem, config.vocab_size)
        values |= ids
        (beside / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
        shards = tensors.shards_of(sizes, most_bytes)
        tensors.write(beside, shards, lambda name: _gathered(params, parts[name]))
        if folder.exists():
            folder.rmdir()
        for file in beside.iterdir():
            file.chmod(0o644)  # safetensors makes them private
        beside.chmod(0o755)
        beside.rename(folder)
    finally:
        if beside.exists():
            shutil.rmtree(beside)


def _gathered(params: model.Params, rows: list[Row]) -> np.ndarray:
    """A tensor of the file from the tensors of ours that it holds."""
    whole = np.empty(rows[0].file_shape, params["embedder"]["embedding"].dtype)
    for row in rows:
        whole[row.part.of(whole.shape) if row.part else ...] = _laid_out(params, row)
    return whole


def _laid_out(params: model.Params, row: Row) -> np.ndarray:
    leaf = params
    for name in row.path:
        leaf = leaf[name]
    return row.layout.to_file(
        np.asarray(jax.device_get(leaf if row.repetition is None else leaf[row.repetition]))
    )
