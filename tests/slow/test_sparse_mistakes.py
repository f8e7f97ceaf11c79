"""Mistakes planted in sparse attention, Longformer and BigBird: a check finds each of them."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.small_models import params_of, tokens_of
from model.mixer_contract import TIME
from model.mixers import test_bigbird, test_longformer
from ops.test_sparse_attention import BIGBIRD, SCORING, dense, documents, inputs, mask
from ops.test_sparse_attention import with_gradients as both

from hybrid import model
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session
from hybrid.model.mixers import kv_cache
from hybrid.model.mixers.longformer import Longformer
from hybrid.ops.attention import sparse
from hybrid.ops.sparse_band import NONE, SparseBand

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


# --- The mistakes: of a function, what stands in its place -----------------------------------


def window_off_by_one(right):
    return lambda *a: right(*a[:4], _with_window(a[4], a[4].window_blocks - 1), a[5])


def near_keys_twice(right):
    return lambda *a: right(*a[:4], _with_window(a[4], 0), a[5])


def _with_window(band, window_blocks):
    return dataclasses.replace(band, window_blocks=window_blocks)


def no_global_blocks(right):
    def pieces(block, band, layout):
        positions, owners = right(block, band, layout)
        return positions.at[:, : layout.num_pieces].set(NONE), owners

    return pieces


def one_block_repeated(right):
    return lambda self, block: jnp.repeat(right(self, block)[..., :1], 2, axis=-1)


def random_blocks_for_all(right):
    return lambda positions, owners, *a: right(positions, jnp.full_like(owners, -2), *a)


def documents_run_on(right):
    return lambda segments: jnp.zeros_like(right(segments))


def far_gradients_lost(right):
    return lambda array, near, pieces, *a: right(array, near, pieces[:, :0], *a)


def blocks_counted_from_one(right):
    return lambda self, block: right(self, jnp.asarray(block) - 1)


def a_block_too_few(right):
    return lambda self, block: right(self, block)[..., 1:]


def one_set_of_projections(right):
    def row(self, x, turn, segments):
        names = {"global_tokens": self, "spec": self.spec, "scoring": self.scoring}
        return right(types.SimpleNamespace(**names), x, turn, segments)

    return row


def all_tokens_global(right):
    def whole(self, out, x, placement):
        turn = placement.shared[self.spec.shared_key]
        return self._row_of_globals(x, turn, placement.segment_ids)

    return whole


def no_keys_before_the_window(right):
    def visible(self, q_position, kv_position):
        is_near = q_position - kv_position < self.window_size
        return right(self, q_position, kv_position) & is_near

    return visible


def next_ring_slot(right):
    return lambda *a: jnp.roll(right(*a), 1, axis=1)


def globals_forgotten(right):
    return lambda self, x, placement, state: (right(self, x, placement, state)[0], state.arrays)


MISTAKES = (
    ("rows", sparse, "_seen_near", window_off_by_one),
    ("rows", sparse, "_seen_far", near_keys_twice),
    ("rows", sparse, "_seen_far", random_blocks_for_all),
    ("rows", sparse, "_pieces", no_global_blocks),
    ("rows", sparse, "document_starts", documents_run_on),
    ("rows", sparse, "_scattered", far_gradients_lost),
    ("draws", SparseBand, "drawn", one_block_repeated),
    ("longformer", sparse, "document_starts", documents_run_on),
    ("longformer", sparse, "_pieces", no_global_blocks),
    ("longformer", Longformer, "_row_of_globals", one_set_of_projections),
    ("longformer", Longformer, "_with_globals", all_tokens_global),
    ("longformer, cached", kv_cache, "_positions", next_ring_slot),
    ("longformer, cached", Longformer, "_step_of_globals", globals_forgotten),
    ("longformer, cached", SparseBand, "visible", no_keys_before_the_window),
    ("bigbird, cached", SparseBand, "blocks_read", a_block_too_few),
    ("bigbird, cached", SparseBand, "blocks_read", blocks_counted_from_one),
)


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_passes_without_a_mistake(check):
    jax.clear_caches()
    CHECKS[check]()


@pytest.mark.parametrize(("check", "place", "name", "wrong"), MISTAKES)
def test_a_mistake_is_found(check, place, name, wrong, monkeypatch):
    monkeypatch.setattr(place, name, wrong(getattr(place, name)))
    jax.clear_caches()  # of programs without it
    with pytest.raises(AssertionError):
        CHECKS[check]()
