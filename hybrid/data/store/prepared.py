"""A prepared store as a source: opened by its manifest, checked against the run's tokenizer."""

from hybrid.config import ConfigError
from hybrid.data.cache import StoredText
from hybrid.data.config import DataConfig
from hybrid.data.store import manifest
from hybrid.data.store.build import check_ids
from hybrid.data.store.encode import Encoder
from hybrid.process.files import path_of

_KEYS = {"bos_id": "data.bos", "eos_id": "data.tokenizer"}


def opened(config: DataConfig, split: str, encoder: Encoder, vocab_size: int) -> StoredText:
    """A split of the store that `data.paths` names; `all` is what it holds out.

    Raises: ConfigError for a folder that is none, another tokenizer, and ids that don't fit.
    """
    (path,) = config.paths
    store = manifest.read(path_of("data.paths", path), "data.paths")
    about = store.manifest
    _check_tokenizer(about.tokenizer, encoder, config)
    check_ids(about.largest_id, vocab_size)
    name = "eval" if split == "all" else split
    part = about.split(name)
    return StoredText(
        store, name, part.fingerprint, about.corpus, about.held_out_below, part.description
    )


def _check_tokenizer(held: dict, encoder: Encoder, config: DataConfig) -> None:
    """Raises: ConfigError where the store's tokens are not those of the run's tokenizer."""
    own = encoder.identity
    for name in ("vocab_size", "fingerprint"):
        if held[name] != own[name]:
            problem = f"is not the tokenizer of the store: their {name} differs"
            accepted = f"the one it was prepared with, of {held['vocab_size']:,} ids"
            got = f"{config.tokenizer} of {own['vocab_size']:,} ids"
            raise ConfigError("data.tokenizer", problem, got, accepted)
    for name, key in _KEYS.items():
        if held[name] != own[name]:
            problem = f"differs from the store's: documents there have {name} {held[name]}"
            raise ConfigError(key, problem, own[name])
