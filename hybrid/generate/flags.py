"""What commands that read a whole model take: its folder by flags, its text and cache by keys."""

import dataclasses
import pathlib
from typing import Any

from hybrid import pretrained
from hybrid.config import ConfigError, key, section
from hybrid.data.config import BOS_POLICIES
from hybrid.data.tokenizers import Tokenizer
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import MOST_STOP_TOKENS
from hybrid.loading import api
from hybrid.loading.api import Model
from hybrid.origin import base_folder
from hybrid.pretrained import Settings
from hybrid.process import cli
from hybrid.process.config import CompilationCacheConfig

MODEL_FLAGS: dict[str, tuple[str, Any]] = {
    "workdir": ("folder of a run", cli.AnyPath),
    "checkpoint": ("of the run: latest, best (by eval/loss) or a step", "latest"),
    "pretrained": ("a Hugging Face folder (Gemma 2, 3, 4) in place of a workdir", pathlib.Path),
    "dtype": ("compute dtype of a Hugging Face folder", "float32"),
}
# The flag of each key that the Python interface names in its errors.
FLAG_OF = {
    "path": "--pretrained",
    "workdir": "--workdir",
    "dtype": "--dtype",
    "model.dtype": "--dtype",
}


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Keys under `data.` that the command takes."""

    tokenizer: str = key(
        "",
        "byte, a tokenizer.json or a folder that holds one; empty: its own",
        path="remote",
    )
    bos: str = key(
        "auto",
        "whether BOS comes first: auto as the model was trained, document and window yes, never no",
        choices=BOS_POLICIES,
    )


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """The config keys that the command takes."""

    data: TextConfig = section(TextConfig)
    inference: InferenceConfig = section(InferenceConfig)
    compilation_cache: CompilationCacheConfig = section(CompilationCacheConfig)


def check_one_folder(values: Any) -> None:
    """Raises: ConfigError unless `--workdir` or `--pretrained` is given."""
    folders = [name for name in ("workdir", "pretrained") if values[name].value]
    if len(folders) != 1:
        got = "both" if folders else "neither"
        raise ConfigError("--workdir", "must be given, or --pretrained", got, "one of them")


def model_of_flags(values: Any) -> Model:
    """The model of `--workdir` and `--checkpoint`, or of `--pretrained` and `--dtype`.

    Raises: ConfigError for both or neither, and as `hybrid.load` and `hybrid.from_pretrained`.
    """
    check_one_folder(values)
    with cli.errors_by_flag(FLAG_OF):
        if values.pretrained:
            return api.from_pretrained(values.pretrained, values.dtype)
        return api.load(values.workdir, values.checkpoint)


def base_settings(model: Model) -> Settings | None:
    """What the Hugging Face folder says that the model is or began as; None without one."""
    base = base_folder(model.origin)
    if base is None:
        return None
    return pretrained.read_settings(base, "--workdir" if model.origin.is_run else "--pretrained")


def stop_ids(tokenizer: Tokenizer, base: Settings | None) -> list[int]:
    """Every id that ends a text: the tokenizer's EOS and those of the folder's settings."""
    own = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids = list(dict.fromkeys([*own, *(base.stop_ids if base else ())]))
    if len(ids) > MOST_STOP_TOKENS:
        problem = f"names more than {MOST_STOP_TOKENS} ids that end a text"
        raise ConfigError("--pretrained", problem, ids)
    return ids
