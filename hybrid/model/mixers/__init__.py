"""Token mixers: how a layer moves information between positions.

A letter of the pattern is a row of `MIXERS`. A mixer is a Flax module built from its `LayerSpec`
and called on the stream with the tokens' `Placement`.
"""

from hybrid.model.mixers.attention import Attention
from hybrid.model.pattern import GLOBAL, LOCAL

MIXERS = {LOCAL: Attention, GLOBAL: Attention}
