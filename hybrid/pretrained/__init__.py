"""Hugging Face folders of Gemma 2, 3 and 4 (the text decoder), in and out.

`config_in.py` (with `defaults.py`, `fields.py`, `rope_in.py`) and `config_out.py` translate
config.json, `settings.py` reads what else a folder says, `names.py` is the table of tensors,
`tensors.py` opens files safely, `read.py` and `write.py` move arrays. Read `names.py` first.
"""

import pathlib
from typing import Any

from hybrid.pretrained.config_in import model_values
from hybrid.pretrained.read import read_params
from hybrid.pretrained.settings import Settings, read_settings
from hybrid.pretrained.tokenizer import raw_text_warning
from hybrid.pretrained.write import write_folder

__all__ = ["Settings", "describe", "model_values", "raw_text_warning", "read_params"]
__all__ += ["read_settings", "write_folder"]

# Gemma has a BOS, and its loss without one is absurd.
BOS = "window"


def describe(folder: pathlib.Path, key: str) -> tuple[dict[str, Any], str, str]:
    """Values of `model.*`, `data.tokenizer` and `data.bos` for a folder.

    Raises: ConfigError under `key`.
    """
    return model_values(folder, key), str(folder.resolve()), BOS
