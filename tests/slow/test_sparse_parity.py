"""Causal Longformer and BigBird against transformers' bidirectional ones, a prefix at a time.

Of a prefix, the last token's own side is all there is: what it reads is the causal result.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model.mixer_contract import MODEL

from hybrid import experiment, model
from hybrid.model.mixers.protocol import Placement
from hybrid.ops.attention import sparse
from hybrid.ops.rope import Rotation
from hybrid.ops.sparse_band import SparseBand

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from transformers import BigBirdConfig, LongformerConfig  # noqa: E402
from transformers.models.big_bird import modeling_big_bird  # noqa: E402
from transformers.models.longformer import modeling_longformer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]
WIDTH, HEADS, TIME = 16, 2, 30
GLOBALS, WINDOW = 3, 5


def stream(time=TIME):
    """[1, time, d] of noise."""
    return np.random.default_rng(0).normal(size=(1, time, WIDTH))


# --- Longformer ------------------------------------------------------------------------------


def test_longformer_reads_what_transformers_reads_at_the_end_of_each_prefix():
    peer, x = longformer_peer(), stream()
    ours = longformer_of(peer)(jnp.asarray(x), unturned(TIME))[0]
    for length in range(1, TIME + 1):
        wanted = longformer_prefix(peer, x[:, :length])
        # The peer's softmax is in float32 whatever its weights are.
        np.testing.assert_allclose(ours[0, length - 1], wanted, atol=5e-7, err_msg=str(length))


def longformer_peer():
    config = LongformerConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        attention_window=[2 * (WINDOW - 1)],  # tokens on both sides
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    peer = modeling_longformer.LongformerSelfAttention(config, 0).double()
    for name, parameter in peer.named_parameters():
        torch.nn.init.zeros_(parameter) if name.endswith("bias") else None
    return peer


def longformer_of(peer):
    """Our module with the peer's weights; it gives its heads one behind the other."""
    keys = MODEL | {"pattern": "S", "last_layer": "any", "num_layers": 1, "num_kv_heads": HEADS}
    keys |= {"longformer": {"num_global_tokens": GLOBALS}, "window_size": WINDOW}
    keys |= {"qk_norm": False, "v_norm": False, "attention_scale": (WIDTH // HEADS) ** -0.5}
    config = experiment.from_config({"model": keys | {"dtype": "float64"}}).model
    (spec,) = model.layer_plan(config).mixers()
    ours = spec.build(config, nnx.Rngs(0))
    for letter, name in {"q": "query", "k": "key", "v": "value"}.items():
        for module, suffix in ((ours, ""), (ours.global_tokens, "_global")):
            weight = getattr(peer, name + suffix).weight.detach().numpy().T
            kernel = jnp.asarray(weight.reshape(WIDTH, HEADS, -1))
            getattr(module, f"{letter}_proj").kernel = nnx.Param(kernel)
    ours.o_proj.kernel = nnx.Param(jnp.eye(WIDTH).reshape(HEADS, -1, WIDTH))
    return ours


def unturned(time):
    """A row whose positions turn nothing: the peer has no rotary encoding."""
    pairs = WIDTH // HEADS // 2
    turn = Rotation(jnp.ones((1, time, 1, pairs)), jnp.zeros((1, time, 1, pairs)))
    return Placement(jnp.arange(time, dtype=jnp.int32)[None], None, AnyKey(turn))


class AnyKey(dict):
    """A dict with one value for every key."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def __missing__(self, key):
        return self.value


def longformer_prefix(peer, x):
    """What the last token reads; rows are padded to whole windows."""
    length = x.shape[1]
    pad = -length % (2 * (WINDOW - 1))
    index = torch.arange(length + pad)[None]
    is_global, is_padding = index < min(GLOBALS, length), index >= length
    mask = torch.where(is_padding, -1e4, torch.where(is_global, 1e4, 0.0)).double()
    out = peer(
        torch.nn.functional.pad(torch.from_numpy(x), (0, 0, 0, pad)),
        attention_mask=mask,
        is_index_masked=is_padding,
        is_index_global_attn=is_global,
        is_global_attn=True,
    )
    return out[0][0, length - 1].detach().numpy()


# --- BigBird ---------------------------------------------------------------------------------

BAND = SparseBand(4, 2, 1, 2, seed=5)
NUM_BLOCKS = 10


def test_bigbird_reads_what_transformers_reads_at_the_end_of_each_prefix(monkeypatch):
    """There the last block sees all and is seen by all: it is left empty, behind the prefix.

    Its own draws are of both sides, so it is given ours.
    """
    monkeypatch.setattr(Peer, "_bigbird_block_rand_mask_with_head", our_draws)
    peer, x = bigbird_peer(), stream(BAND.block_size * NUM_BLOCKS)
    q, k, v = (heads_of(layer, x) for layer in (peer.query, peer.key, peer.value))
    ours = sparse.attend(q, k, v, BAND, scale=(WIDTH // HEADS) ** -0.5)
    for length in range(first_with_draws(), x.shape[1] + 1):
        wanted = bigbird_prefix(peer, x[:, :length])
        got = np.asarray(ours)[0, length - 1].reshape(-1)
        np.testing.assert_allclose(got, wanted, atol=1e-9, err_msg=str(length))


Peer = modeling_big_bird.BigBirdBlockSparseAttention


def first_with_draws():
    """The shortest prefix whose last block has as many random blocks as there must be there."""
    blocks = np.asarray(BAND.drawn(np.arange(NUM_BLOCKS)))
    return BAND.block_size * int(np.argmax((blocks >= 0).all(axis=1))) + 1


def our_draws(peer, from_seq_length, num_heads, **_):
    """[heads, blocks − 2, random blocks], of blocks 1 … ; early ones are not compared."""
    num_blocks = from_seq_length // BAND.block_size
    drawn = np.maximum(np.asarray(BAND.drawn(np.arange(1, num_blocks - 1))), 0)
    return [drawn] * num_heads


def bigbird_peer():
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "block_size": BAND.block_size}
    config = BigBirdConfig(num_random_blocks=BAND.num_random_blocks, use_bias=False, **sizes)
    torch.manual_seed(0)
    return Peer(config, seed=0).double().train()


def heads_of(layer, x):
    """[1, t, n, h]."""
    projected = layer(torch.from_numpy(x)).detach().numpy()
    return jnp.asarray(projected.reshape(*x.shape[:2], HEADS, -1))


def bigbird_prefix(peer, x):
    """What the last token reads, in the block before an empty last one."""
    length, size = x.shape[1], BAND.block_size
    pad = -length % size + size
    mask = (torch.arange(length + pad)[None] < length).double()
    masks = modeling_big_bird.BigBirdModel.create_masks_for_block_sparse_attn(mask, size)
    blocked, band_mask, from_mask, to_mask = masks
    padded = torch.nn.functional.pad(torch.from_numpy(x), (0, 0, 0, pad))
    out = peer(padded, band_mask, from_mask, to_mask, blocked, blocked)
    return out[0][0, length - 1].detach().numpy()


def test_a_wrong_draw_would_be_seen(monkeypatch):
    """The same comparison with the draws of another seed."""
    other = dataclasses.replace(BAND, seed=6)
    monkeypatch.setattr(Peer, "_bigbird_block_rand_mask_with_head", our_draws)
    peer, x = bigbird_peer(), stream(BAND.block_size * NUM_BLOCKS)
    q, k, v = (heads_of(layer, x) for layer in (peer.query, peer.key, peer.value))
    ours = sparse.attend(q, k, v, other, scale=(WIDTH // HEADS) ** -0.5)
    wanted = bigbird_prefix(peer, x)
    assert np.abs(np.asarray(ours)[0, -1].reshape(-1) - wanted).max() > 1e-3
