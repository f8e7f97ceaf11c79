"""Token mixers: how a layer moves information between positions.

`MIXERS` is the one table of letters. A mixer is a file of this folder that defines a `MixerSpec`,
its module and a `Letter` (`protocol.py`); a line here adds it. `docs/add_a_mixer.md` shows how.
"""

from hybrid.model.config import ModelConfig
from hybrid.model.mixers import (
    attention,
    bigbird,
    gated_deltanet,
    kimi_delta,
    longformer,
    mamba2,
    rg_lru,
    rwkv7,
)
from hybrid.model.mixers.protocol import Letter

MIXERS: dict[str, Letter] = {}


def register(*letters: Letter) -> None:
    """Adds letters to the table, and their sections of keys to `model.`."""
    for letter in letters:
        MIXERS[letter.letter] = letter
        if letter.section is not None:
            name, section = letter.section
            ModelConfig.SECTIONS[name] = section


register(attention.LOCAL, attention.GLOBAL)
register(longformer.LETTER, bigbird.LETTER)
register(mamba2.LETTER, rg_lru.LETTER)
register(gated_deltanet.LETTER, kimi_delta.LETTER, rwkv7.LETTER)
