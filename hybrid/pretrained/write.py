"""A model as a Hugging Face folder: config.json, safetensors, tokenizer; whole or not at all."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid import model
from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.model.params import Leaves, flat
from hybrid.pretrained import names, tensors
from hybrid.pretrained.config_out import hugging_face_config
from hybrid.pretrained.fields import CONFIG
from hybrid.pretrained.names import StoredTensor
from hybrid.pretrained.settings import GENERATION, read_settings
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
    adds_bos: bool = True,
    dtype: str = "",
    base: pathlib.Path | None = None,
    most_bytes: int = MOST_BYTES,
) -> None:
    """Writes a folder that transformers loads.

    Args:
      tokenizer: `byte`, a tokenizer.json or a folder with one.
      adds_bos: whether a byte tokenizer puts BOS before a text.
      dtype: of the tensors; empty: the parameters'.
      base: the Hugging Face folder that the parameters began as, whose special ids, positions and
        generation_config.json go along.
      most_bytes: of a file of tensors, larger single tensors aside.
    Raises: ConfigError for a folder that isn't empty, a model that transformers cannot be, or a
      base that can't be read.
    """
    check_free(folder, "output")
    leaves = flat(params)
    stored_dtype = np.dtype(jnp.dtype(dtype or leaves["embedder", "embedding"].dtype))
    values = hugging_face_config(config, stored_dtype.name)
    settings = None if base is None else read_settings(base)
    if settings is not None:
        values["max_position_embeddings"] = settings.max_positions
    stored = names.stored_tensors(config, PREFIX)
    sizes = {
        n: math.prod(group[0].file_shape) * stored_dtype.itemsize for n, group in stored.items()
    }
    with whole_folder(folder) as temporary:
        ids: dict[str, Any] = dict(write_tokenizer(tokenizer, temporary, adds_bos=adds_bos))
        if settings is not None:
            ids |= settings.token_ids
            if settings.generation is not None:
                (temporary / GENERATION).write_bytes(settings.generation)
        _check_ids(ids, config.vocab_size)
        write_json(temporary / CONFIG, values | ids)
        tensors.write(
            temporary,
            sizes,
            most_bytes,
            lambda name: _assembled(leaves, stored[name], stored_dtype),
        )


def _check_ids(ids: Mapping[str, Any], vocab_size: int) -> None:
    """Raises: ConfigError for a special id that the embedding has no row for."""
    named = [i for value in ids.values() for i in (value if isinstance(value, list) else [value])]
    largest = max((i for i in named if i is not None), default=0)
    if largest >= vocab_size:
        problem = f"is too small for the tokenizer's special id {largest}"
        raise ConfigError("model.vocab_size", problem, vocab_size)


def _assembled(leaves: Leaves, stored: list[StoredTensor], dtype: np.dtype) -> np.ndarray:
    whole = np.empty(stored[0].file_shape, dtype)
    for tensor in stored:
        leaf = leaves[tensor.path]
        ours = leaf if tensor.repetition is None else leaf[tensor.repetition]
        index = tensor.part.of(whole.shape) if tensor.part else ...
        whole[index] = tensor.layout.to_file(np.asarray(jax.device_get(ours)))
    return whole
