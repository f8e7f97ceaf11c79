"""A model as a Hugging Face folder: config.json, safetensors, tokenizer; whole or not at all."""

import math
import pathlib

import jax
import numpy as np

from hybrid import model
from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.model.params import Leaves, flat
from hybrid.pretrained import names, tensors
from hybrid.pretrained.config_in import CONFIG
from hybrid.pretrained.config_out import hugging_face_config
from hybrid.pretrained.names import StoredTensor
from hybrid.pretrained.tokenizer import write_tokenizer
from hybrid.process.files import check_free, whole_folder, write_json

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
    check_free(folder, "output")
    leaves = flat(params)
    dtype = leaves["embedder", "embedding"].dtype
    values = hugging_face_config(config, dtype.name)
    stored = names.stored_tensors(config, PREFIX)
    sizes = {n: math.prod(group[0].file_shape) * dtype.itemsize for n, group in stored.items()}
    with whole_folder(folder) as temporary:
        ids = write_tokenizer(tokenizer, temporary)
        largest = max(ids.values(), default=0)
        if largest >= config.vocab_size:
            problem = f"is too small for the tokenizer's special id {largest}"
            raise ConfigError("model.vocab_size", problem, config.vocab_size)
        write_json(temporary / CONFIG, values | ids)
        tensors.write(
            temporary, sizes, most_bytes, lambda name: _assembled(leaves, stored[name], dtype)
        )


def _assembled(leaves: Leaves, stored: list[StoredTensor], dtype: np.dtype) -> np.ndarray:
    whole = np.empty(stored[0].file_shape, dtype)
    for tensor in stored:
        leaf = leaves[tensor.path]
        ours = leaf if tensor.repetition is None else leaf[tensor.repetition]
        index = tensor.part.of(whole.shape) if tensor.part else ...
        whole[index] = tensor.layout.to_file(np.asarray(jax.device_get(ours)))
    return whole
