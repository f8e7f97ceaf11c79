"""The letters: array shapes used in every signature, and the logical names of axes.

Letters stand only inside brackets and einsum strings:

    b  batch             t  query time         s  key time
    n  query heads       k  key/value heads    g  query heads per key/value head
    h  head_dim          d  d_model            f  feed-forward width
    v  vocabulary        w  window             l  stacked layers (repetitions of a segment)
    e  experts           a  experts of a token p  per-layer-embedding width

Annotations are checked in the tests (jaxtyping's import hook) and cost nothing in a run.
The logical names are what parameters and activations carry; `hybrid/sharding.py` maps them
to mesh axes.
"""

from jaxtyping import Array, Bool, Float, Int

# Activations.
Tokens = Int[Array, "b t"]
Segments = Int[Array, "b t"]
Positions = Int[Array, "b t"]
Mask = Bool[Array, "b t"]
Hidden = Float[Array, "b t d"]
Logits = Float[Array, "b t v"]
Query = Float[Array, "b t n h"]
Key = Float[Array, "b s k h"]
Value = Float[Array, "b s k h"]
Scalar = Float[Array, ""]

# Logical axis names of parameters.
LAYERS = "layers"
EMBED = "embed"
HEADS = "heads"
KV_HEADS = "kv_heads"
HEAD_DIM = "head_dim"
FFN = "ffn"
VOCAB = "vocab"
EXPERTS = "experts"
BLOCKS = "blocks"  # of a block-diagonal kernel, each a matrix of its own
CONV = "conv"  # tokens that a depthwise convolution sees: its kernel is a vector a channel
LAYER_EMBED = "layer_embed"

# Logical axis names of activations.
BATCH = "batch"
TIME = "time"
