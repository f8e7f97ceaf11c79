"""Keys of mixers in the small models of tests, where defaults are too wide or leave a part out.

A letter without a row runs at its own defaults, so a new letter joins the tests that read this.
"""

from typing import Any

from hybrid.model.mixers import MIXERS

KEYS: dict[str, dict[str, Any]] = {
    "D": {"delta": {"num_key_heads": 2}},
    "M": {"mamba2": {"head_dim": 8, "state_dim": 6}},
    "W": {"rwkv7": {"value_residual": True}},
}
STATE_LETTERS = tuple(letter for letter, row in MIXERS.items() if row.kind == "state")


def keys_of(letters: str) -> dict[str, Any]:
    """Keys under `model.` of all letters together."""
    return {name: keys for letter in set(letters) for name, keys in KEYS.get(letter, {}).items()}
