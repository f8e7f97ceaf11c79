"""Mistakes planted in sparse attention, Longformer and BigBird: a check finds each of them."""

import functools

import jax
import numpy as np
import pytest
from inference.small_models import params_of, tokens_of
from model.mixer_contract import TIME
from model.mixers import test_bigbird, test_longformer
from model.planted import assert_found
from ops.test_sparse_attention import BIGBIRD, SCORING, dense, documents, inputs, mask
from ops.test_sparse_attention import with_gradients as both

from hybrid import model
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session
from hybrid.model.mixers import kv_cache
from hybrid.model.mixers import longformer as longformer_mixer
from hybrid.ops import sparse_band
from hybrid.ops.attention import sparse
from hybrid.ops.sparse_band import NONE

pytestmark = [pytest.mark.weekly, pytest.mark.usefixtures("x64")]


# --- The checks ------------------------------------------------------------------------------


def rows():
    """Packed rows have the oracle's values and gradients."""
    segments = documents([[17, 3, 20], [5, 35]])
    ours = functools.partial(_ours, segments)
    seen = np.stack([mask(BIGBIRD, each) for each in np.asarray(segments)])
    got, wanted = (both(each)(*inputs()) for each in (ours, functools.partial(dense, seen=seen)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), got, wanted)


def _ours(segments, q, k, v, sinks):
    return sparse.attend(q, k, v, BIGBIRD, segments, sinks=sinks, **SCORING)


def draws():
    """No block is drawn twice."""
    for drawn in np.asarray(BIGBIRD.drawn(np.arange(40))):
        real = drawn[drawn != NONE].tolist()
        assert len(set(real)) == len(real)


def longformer():
    """A layer sees its pattern, and its first tokens have projections of their own."""
    contract = test_longformer.TestLongformer()
    contract.test_a_layer_sees_its_window_and_the_first_tokens()
    contract.test_documents_of_a_row_do_not_see_each_other()
    contract.test_global_tokens_have_projections_of_their_own()


def steps(contract):
    """A prompt in two chunks, then a token at a time, is read as the forward reads it."""
    config = contract.config(dtype="float64")
    params, tokens = params_of(config), tokens_of(config, time=TIME)
    session = Session(config, params, InferenceConfig())
    cache = session.empty(len(tokens), TIME)
    for part in (tokens[:, :1], tokens[:, 1:9], *tokens[:, 9:].T[:, :, None]):
        cache, logits = session.prefill(cache, part, chunk=part.shape[1])
    wanted = jax.jit(functools.partial(model.logits, config))(params, tokens)
    np.testing.assert_allclose(logits, wanted[:, -1], atol=1e-9)


CHECKS = {
    "rows": rows,
    "draws": draws,
    "longformer": longformer,
    "longformer, cached": functools.partial(steps, test_longformer.TestLongformer()),
    "bigbird, cached": functools.partial(steps, test_bigbird.TestBigBird()),
}


# --- The mistakes ----------------------------------------------------------------------------

ROWS = {
    "the window is a block too short": (
        "blocks - key_blocks < band.window_blocks",
        "blocks - key_blocks < band.window_blocks - 1",
    ),
    "keys of the window are seen twice": ("-1, 1) >= band.window_blocks", "-1, 1) >= 0"),
    "random blocks are for all": ("owners[..., None] == _ALL", "owners[..., None] >= _ALL"),
    "gradients of far keys are lost": ("in range(pieces.shape[1])", "in range(0)"),
}
OF_BOTH = {
    "no global blocks": ("broadcast_to(first, shape)", "broadcast_to(first * 0 + NONE, shape)"),
    "documents run on": ("jnp.where(is_first, index, 0)", "jnp.where(is_first, 0 * index, 0)"),
}
LONGFORMER = {
    "one set of projections": (
        "q = self.global_tokens.project_q(x, turn)\n        keys_values = self.global_tokens.",
        "q = self.project_q(x, turn)\n        keys_values = self.",
    ),
    "all tokens are global": (
        "count, segments = self.spec.num_pinned,",
        "count, segments = x.shape[1],",
    ),
}
DRAWS = {"one block is repeated": ("jnp.stack(ranks, axis", "jnp.stack(2 * ranks[:1], axis")}
RING = {
    "the next slot of the ring": (
        "return jnp.where((held >= 0) & (held < length[:, None]), held, -1)",
        "return jnp.roll(jnp.where((held >= 0) & (held < length[:, None]), held, -1), 1, axis=1)",
    ),
}
GLOBALS = {"global tokens are forgotten": ("return out, kept\n", "return out, state.arrays\n")}
VISIBLE = {
    "no keys before the window": (
        "return seen & (",
        "return seen & (q_position - kv_position < self.window_size) & (",
    ),
}
BLOCKS = {
    "a block too few": ("concatenate(parts, axis=-1)", "concatenate(parts, axis=-1)[..., 1:]"),
    "blocks count from one": (
        "block = jnp.asarray(block, jnp.int32)[..., None]",
        "block = jnp.asarray(block, jnp.int32)[..., None] - 1",
    ),
}  # fmt: skip
MISTAKES = [
    pytest.param(check, module, *mistake, id=f"{check}: {name}")
    for check, module, table in (
        ("rows", sparse, ROWS | OF_BOTH),
        ("draws", sparse_band, DRAWS),
        ("longformer", sparse, OF_BOTH),
        ("longformer", longformer_mixer, LONGFORMER),
        ("longformer, cached", kv_cache, RING),
        ("longformer, cached", longformer_mixer, GLOBALS),
        ("longformer, cached", sparse_band, VISIBLE),
        ("bigbird, cached", sparse_band, BLOCKS),
    )
    for name, mistake in table.items()
]


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_passes_without_a_mistake(check):
    CHECKS[check]()


@pytest.mark.parametrize(("check", "module", "right", "wrong"), MISTAKES)
def test_a_mistake_is_found(check, module, right, wrong):
    assert_found(CHECKS[check], module, right, wrong)
