"""Sparse attention against a dense mask that is written out pair by pair."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.costs.flops import count_flops
from hybrid.ops.attention import sparse
from hybrid.ops.sparse_band import NONE, SparseBand

LONGFORMER = SparseBand(1, 5, 2)
BIGBIRD = SparseBand(4, 2, 1, 2, seed=3)
BANDS = {
    "longformer": LONGFORMER,
    "longformer, as many global tokens as the window": SparseBand(1, 3, 4),
    "bigbird": BIGBIRD,
    "bigbird of one block": SparseBand(3, 1, 0, 1),
    "bigbird without random blocks": SparseBand(3, 2, 2),
    "window alone": SparseBand(1, 7),
}
# Lengths of the documents of a row of 40 tokens; None: rows that are one document each.
ROWS = {
    "one document": None,
    "awkward lengths": [[17, 3, 20], [5, 35]],
    "a deep document, then many short ones": [[30, 1, 1, 1, 2, 5], [33] + 7 * [1]],
    "many short documents": [40 * [1], 13 * [3] + [1]],
}
SCORING = {"scale": 0.7, "softcap": 4.0}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", BANDS)
@pytest.mark.usefixtures("x64")
def test_values_and_gradients_are_those_of_a_dense_mask(name, row):
    segments = documents(ROWS[row])
    seen = np.stack([mask(BANDS[name], each) for each in np.asarray(documents(ROWS[row], 1))])
    got = run(BANDS[name], inputs(), None if ROWS[row] is None else segments)
    wanted = jax.jit(with_gradients(functools.partial(dense, seen=seen)))(*inputs())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9, rtol=1e-9), got, wanted)


@pytest.mark.usefixtures("x64")
def test_a_document_is_the_same_alone_and_packed():
    q, k, v, _ = inputs()
    segments = documents([[17, 3, 20], [5, 35]])
    whole = sparse.attend(q, k, v, BIGBIRD, segments)
    alone = sparse.attend(q[:1, 20:], k[:1, 20:], v[:1, 20:], BIGBIRD)
    np.testing.assert_allclose(whole[:1, 20:], alone, atol=1e-12)


def test_results_are_in_the_dtype_of_the_queries():
    q, k, v, sinks = (x.astype(jnp.bfloat16) for x in inputs())
    out = sparse.attend(q, k, v, BIGBIRD, sinks=sinks)
    assert out.dtype == jnp.bfloat16
    wide = sparse.attend(*(x.astype("float32") for x in (q, k, v)), BIGBIRD, sinks=sinks)
    np.testing.assert_allclose(out, wide, atol=0.02)


@pytest.mark.parametrize("band", [SparseBand(1, 32, 4), SparseBand(16, 2, 1, 2)])
@pytest.mark.parametrize("is_packed", [False, True])
def test_work_and_memory_are_linear_in_the_row(band, is_packed):
    programs = [compiled(band, time, is_packed) for time in (512, 1024, 2048)]
    flops = [count_flops(program.as_text()) for program in programs]
    assert flops[2] - flops[1] == pytest.approx(2 * (flops[1] - flops[0]), rel=1e-3)
    memory = [program.memory_analysis().temp_size_in_bytes for program in programs]
    assert memory[2] <= 2.1 * memory[1]
    # A product for scores and one for values, forward, and five more in the backward.
    seen = band.num_visible(np.arange(2048)).sum()
    assert flops[2] <= (4.2 if is_packed else 2.2) * 7 * 2 * 2 * 8 * seen


# --- Who sees whom ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BANDS)
def test_the_band_is_its_definition_and_counts_right(name):
    band, index = BANDS[name], np.arange(40)
    visible = np.asarray(band.visible(index[:, None], index[None, :]))
    np.testing.assert_array_equal(visible, mask(band, np.ones(40)))
    np.testing.assert_array_equal(visible.sum(axis=1), band.num_visible(index))
    assert not np.asarray(band.visible(index, np.full(40, -1))).any()


@pytest.mark.parametrize("name", BANDS)
def test_the_blocks_read_are_those_that_are_seen_each_once(name):
    band, index = BANDS[name], np.arange(40)
    for position in index:
        block = position // band.block_size
        read = [each for each in np.asarray(band.blocks_read(block)).tolist() if each != NONE]
        seen = np.flatnonzero(mask(band, np.ones(40))[position]) // band.block_size
        assert sorted(read) == sorted(set(seen.tolist()))


def test_a_window_of_tokens_counts_the_token_itself():
    seen = np.asarray(LONGFORMER.visible(np.array([[20]]), np.arange(40)[None]))[0]
    assert np.flatnonzero(seen).tolist() == [0, 1, 16, 17, 18, 19, 20]


def test_a_window_of_blocks_counts_the_own_one_to_the_token_itself():
    band = SparseBand(4, 2, 1)
    seen = np.asarray(band.visible(np.array([[21]]), np.arange(40)[None]))[0]
    assert np.flatnonzero(seen).tolist() == [0, 1, 2, 3, 16, 17, 18, 19, 20, 21]


def test_draws_are_apart_and_between_the_first_blocks_and_the_window():
    band = SparseBand(4, 3, 2, 3, seed=11)
    for block, drawn in enumerate(np.asarray(band.drawn(np.arange(300)))):
        real = drawn[drawn != NONE].tolist()
        candidates = range(2, block - 2)
        assert len(set(real)) == len(real) == min(3, len(candidates))
        assert set(real) <= set(candidates)


def test_draws_follow_from_seed_and_block_alone_and_are_uniform():
    drawn = np.asarray(BIGBIRD.drawn(np.array([[30, 7], [7, 30]])))
    np.testing.assert_array_equal(drawn[0, 0], drawn[1, 1])
    np.testing.assert_array_equal(drawn[0, 0], np.asarray(BIGBIRD.drawn(np.int32(30))))
    counts = np.zeros(8)
    for seed in range(800):
        band = SparseBand(4, 2, 1, 2, seed)
        counts += np.bincount(np.asarray(band.drawn(np.int32(10))), minlength=9)[1:9]
    assert counts.sum() == 1600
    assert np.abs(counts - 200).max() < 5 * 200**0.5


def test_draws_do_not_change_with_a_release():
    """A model's parameters have learnt with them."""
    np.testing.assert_array_equal(np.asarray(BIGBIRD.drawn(np.array([9, 100, 5000]))), DRAWN)


DRAWN = [[5, 7], [6, 7], [4214, 464]]


# --- The oracle ------------------------------------------------------------------------------


def mask(band, segments):
    """bool [t, t], pair by pair; only what is drawn is the band's own."""
    time, size = len(segments), band.block_size
    seen = np.zeros((time, time), bool)
    for q in range(time):
        begin = q
        while begin and segments[begin - 1] == segments[q]:
            begin -= 1
        own = (q - begin) // size
        drawn = set(np.asarray(_drawn(band)[own]).tolist())
        for key in range(begin, q + 1):
            block = (key - begin) // size
            near, first = own - block <= band.window_blocks - 1, block <= band.num_global_blocks - 1
            seen[q, key] = near or first or block in drawn
    return seen


@functools.cache
def _drawn(band):
    return np.asarray(band.drawn(np.arange(40)))


def dense(q, k, v, sinks, seen):
    """Softmax over all keys, one head after the other."""
    heads = []
    for head in range(q.shape[2]):
        key, value = (x[:, :, head // (q.shape[2] // k.shape[2])] for x in (k, v))
        s = jnp.einsum("bth,bsh->bts", q[:, :, head], key) * SCORING["scale"]
        s = SCORING["softcap"] * jnp.tanh(s / SCORING["softcap"])
        sink = jnp.broadcast_to(sinks[head], (*s.shape[:2], 1))
        s = jnp.concatenate([jnp.where(seen, s, -jnp.inf), sink], axis=-1)
        heads.append(jax.nn.softmax(s)[..., :-1] @ value)
    return jnp.stack(heads, axis=2)


def run(band, arrays, segments):
    """The result and the gradients of q, k, v and sinks."""
    return _jitted(band, segments is not None)(*arrays, segments)


@functools.cache
def _jitted(band, is_packed):
    del is_packed  # a program of its own

    def call(q, k, v, sinks, segments):
        return sparse.attend(q, k, v, band, segments, sinks=sinks, **SCORING)

    return jax.jit(
        lambda *arrays: with_gradients(functools.partial(call, segments=arrays[4]))(*arrays[:4])
    )


def with_gradients(function):
    """(out, gradients) of a fixed weighting of the result."""

    def both(*arrays):
        out, pull = jax.vjp(function, *arrays)
        weights = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return out, pull(weights)

    return both


def inputs():
    rng = np.random.default_rng(0)
    shapes = (2, 40, 4, 8), (2, 40, 2, 8), (2, 40, 2, 8), (4,)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


def documents(lengths, default=0):
    """int32 [2, 40] of the lengths of each row's documents."""
    rows = [[40], [40]] if lengths is None else lengths
    return jnp.asarray([np.repeat(np.arange(len(row)) + default, row) for row in rows], jnp.int32)


def compiled(band, time, is_packed):
    """The program of values and gradients."""
    q = jax.ShapeDtypeStruct((1, time, 2, 8), jnp.float32)
    kv = jax.ShapeDtypeStruct((1, time, 1, 8), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, time), jnp.int32) if is_packed else None

    def call(q, k, v, segments):
        return with_gradients(lambda *a: sparse.attend(*a, band, segments))(q, k, v)

    return jax.jit(call).lower(q, kv, kv, segments).compile()
