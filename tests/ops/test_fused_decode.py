"""The kernels of decoding, interpreted on a CPU: what they give and what they read.

Run this file as a script to see what eight simulated devices give.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simulated
from inference.small_models import LAYOUTS

from hybrid.ops import dispatch, rope
from hybrid.ops.attention import attend_cached, reference, writing
from hybrid.ops.attention.pallas import decode, decode_operands
from hybrid.ops.attention.slots import Slots, Stored
from hybrid.ops.band import Band

LAYERS, ROW, BATCH, HEADS, KV_HEADS, HEAD_DIM = 3, 1, 3, 6, 2, 16


@dataclasses.dataclass(frozen=True)
class Case:
    """A call over small blocks: 32 slots, queries turned back for 8 at once.

    Attributes:
      form: "keys", or a layout of unified caches.
      lengths: tokens of each row, the new ones included.
      ring: whether position p stands in slot p mod num_slots.
    """

    name: str
    form: str
    num_slots: int = 96
    time: int = 1
    fraction: float = 0.25
    lengths: tuple[int, ...] = (91, 0, 17)
    window_size: int | None = None
    ring: bool = False
    is_int8: bool = False
    sinks: bool = False
    softcap: float | None = None
    scale: float = 1.0

    @property
    def scoring(self):
        return {"scale": self.scale, "softcap": self.softcap}

    def positions(self):
        """Of queries [b, t] and of slots [b, s]."""
        lengths, slot = np.array(self.lengths)[:, None], np.arange(self.num_slots)[None]
        newest = lengths - 1
        held = newest - (newest - slot) % self.num_slots if self.ring else slot
        held = np.where((held >= 0) & (held < lengths), held, -1)
        queries = lengths - self.time + np.arange(self.time)[None]
        return jnp.asarray(queries, jnp.int32), jnp.asarray(held, jnp.int32)


UNIFIED = [
    Case("values, ragged", "value"),
    Case("values, five tokens, odd capacity", "value", 75, 5, 1.0, (75, 5, 40), softcap=3.0),
    Case("values of int8, sinks", "value", is_int8=True, sinks=True, scale=0.5),
    Case("values, no pair turns", "value", fraction=0.0),
    Case("turned parts", "value_and_rotated", 75),
    Case("turned parts of int8", "value_and_rotated", time=5, is_int8=True, lengths=(91, 5, 33)),
    Case("turned parts, all pairs turn", "value_and_rotated", fraction=1.0, softcap=3.0),
]
RING = {"window_size": 13, "ring": True}
SEPARATE = [
    Case("keys, sinks", "keys", time=5, lengths=(96, 6, 40), sinks=True, scale=0.5),
    Case("a ring that has wrapped", "keys", 16, 3, lengths=(91, 3, 17), softcap=3.0, **RING),
    Case("a ring of several blocks", "keys", 67, lengths=(90, 0, 17), is_int8=True, **RING),
]
CASES = UNIFIED + SEPARATE


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(decode_operands, "_MOST_SLOTS", 32)
    monkeypatch.setattr(decode_operands, "_TURNED", 8)


def arrays(case: Case, dtype=jnp.float64, heads=(HEADS, KV_HEADS), batch: int = BATCH):
    """q [b, t, n, h], slots, sinks, and what the slots mean: keys and values [b, s, k, h]."""
    rng = np.random.default_rng(0)
    outer = (LAYERS, batch, heads[1], case.num_slots)
    pairs = rope.num_rotated_pairs(HEAD_DIM, case.fraction)

    def stored(width):
        numbers = rng.normal(size=(*outer, width))
        if not case.is_int8:
            return Stored(jnp.asarray(numbers, dtype))
        steps = jnp.asarray(np.clip(np.round(40 * numbers), -127, 127), jnp.int8)
        return Stored(steps, jnp.asarray(rng.uniform(0.01, 0.05, outer), jnp.bfloat16))

    def meant(tensor):
        scales = 1 if tensor.scales is None else tensor.scales[ROW][..., None].astype(dtype)
        return (tensor.values[ROW].astype(dtype) * scales).swapaxes(1, 2)

    q = jnp.asarray(rng.normal(size=(batch, case.time, heads[0], HEAD_DIM)), dtype)
    sinks = jnp.asarray(rng.normal(size=heads[0]), dtype) if case.sinks else None
    values = stored(HEAD_DIM)
    if case.form == "keys":
        keys = stored(HEAD_DIM)
        return q, Slots(values, ROW, keys=keys), sinks, (meant(keys), meant(values))
    k_scale = jnp.asarray(rng.uniform(0.5, 2, HEAD_DIM), dtype)
    turn, frequencies = _turn(case, dtype)
    key = rope.apply(meant(values) * k_scale[None, None, None], turn)
    slots = Slots(values, ROW, k_scale=k_scale)
    if case.form == "value":
        return q, slots._replace(turn=turn, frequencies=frequencies), sinks, (key, meant(values))
    part = stored(2 * pairs)
    half = HEAD_DIM // 2
    turned = meant(part)
    key = key.at[..., :pairs].set(turned[..., :pairs])
    key = key.at[..., half : half + pairs].set(turned[..., pairs:])
    return q, slots._replace(rotated=part), sinks, (key, meant(values))


def _turn(case, dtype):
    at = jnp.arange(case.num_slots, dtype=jnp.int32)[None]
    turn = rope.rotation(at, HEAD_DIM, theta=100.0, fraction=case.fraction, dtype=dtype)
    return turn, jnp.asarray(rope.frequencies(HEAD_DIM, 100.0, case.fraction), dtype)


def fused(case, q, slots, sinks):
    in_use = None if case.ring else jnp.asarray(case.lengths, jnp.int32)
    with dispatch.use_backend("tpu"):
        return attend_cached(
            q,
            slots,
            *case.positions(),
            in_use=in_use,
            window_size=case.window_size,
            sinks=sinks,
            implementation="fused",
            **case.scoring,
        )


def oracle(case, q, key, value, sinks):
    queries, held = case.positions()
    band = Band(case.window_size, q_positions=queries, kv_positions=held)
    return reference.attend(q, key, value, band, sinks=sinks, **case.scoring)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_kernel_equals_the_oracle_and_the_tiled_path(case):
    q, slots, sinks, keys_values = arrays(case)
    out = fused(case, q, slots, sinks)
    options = {"window_size": case.window_size, "sinks": sinks, **case.scoring}
    tiled = attend_cached(q, slots, *case.positions(), **options)
    np.testing.assert_allclose(out, oracle(case, q, *keys_values, sinks), atol=1e-12)
    np.testing.assert_allclose(out, tiled, atol=1e-12)
    if 0 in case.lengths:
        assert not np.any(out[case.lengths.index(0)])


def test_float32():
    case = UNIFIED[1]
    q, slots, sinks, keys_values = arrays(case, jnp.float32)
    out = fused(case, q, slots, sinks)
    np.testing.assert_allclose(out, oracle(case, q, *keys_values, sinks), atol=1e-5)


def test_bfloat16_is_about_as_close_to_float32_as_the_tiled_path_is():
    case = Case("bfloat16", "value")
    q, slots, _, keys_values = arrays(case, jnp.float32)
    exact = oracle(case, q, *keys_values, None)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (q, slots.values))
    slots = slots._replace(values=narrow[1])
    errors = [
        float(np.abs(np.asarray(out, np.float32) - exact).max())
        for out in (
            fused(case, narrow[0], slots, None),
            attend_cached(narrow[0], slots, *case.positions()),
        )
    ]
    assert errors[0] <= 3 * errors[1]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_two_angles_added_are_as_close_as_one(dtype, x64):
    """At a million tokens, where float32's own angle is off by up to 1/32."""
    error = float(jnp.finfo(dtype).eps) / 2
    frequencies = rope.frequencies(512, 1e6, 0.25)
    start = 256 * np.arange(4095, dtype=np.int64)[:, None]
    exact = (start + 255) * frequencies.astype(dtype).astype(np.longdouble)
    parts = [(p.astype(dtype) * frequencies.astype(dtype)) for p in (start, np.array([[255]]))]
    off = np.abs(parts[0].astype(np.longdouble) + parts[1] - exact)
    assert np.all(off <= 1.0001 * error * exact)


# --- What is read -----------------------------------------------------------------------------


def blocks_read(case: Case, slots: Slots, q):
    """Bytes that the pipeline fetches by operand, in the order of the grid."""
    layout = decode_operands.Layout.of(slots, case.time * HEADS // KV_HEADS)
    of = functools.partial(decode_operands.operands_of, layout)
    operands = jax.eval_shape(of, q, slots, *case.positions(), None)
    specs = decode_operands.specs_of(layout, operands)
    used, longest = decode._blocks(layout, BATCH, jnp.asarray(case.lengths))
    used, found = np.asarray(used), {}
    for name, operand in operands._asdict().items():
        if operand is None:
            continue
        spec, last, fetched = getattr(specs, name), None, 0
        for step in np.ndindex(BATCH, KV_HEADS, int(longest)):
            index = tuple(int(i) for i in spec.index_map(*step, [ROW], used))
            if index != last:
                pairs = zip(index, spec.block_shape, operand.shape, strict=True)
                fetched += np.prod([min(size, whole - i * size) for i, size, whole in pairs])
            last = index
        found[name] = int(fetched) * operand.dtype.itemsize
    return found


@pytest.mark.parametrize("form", LAYOUTS[:2])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_step_reads_what_each_row_has_once(form, dtype, monkeypatch):
    monkeypatch.undo()  # blocks as they are
    wide, num_slots = 512, 65_536
    case = Case("long", form, num_slots, lengths=(60_000, 100, 9_000))

    def stored(width):
        outer = (LAYERS, BATCH, KV_HEADS, num_slots)
        scales = jax.ShapeDtypeStruct(outer, jnp.bfloat16) if dtype == "int8" else None
        return Stored(jax.ShapeDtypeStruct((*outer, width), dtype), scales)

    slots = Slots(stored(wide), ROW, k_scale=jax.ShapeDtypeStruct((wide,), jnp.float32))
    if form == "value":
        angles = jax.ShapeDtypeStruct((1, num_slots, 1, 64), jnp.float32)
        per_pair = jax.ShapeDtypeStruct((64,), jnp.float32)
        slots = slots._replace(turn=rope.Rotation(angles, angles), frequencies=per_pair)
    else:
        slots = slots._replace(rotated=stored(128))
    found = blocks_read(case, slots, jnp.zeros((BATCH, 1, HEADS, wide), jnp.float32))
    kept = sum(s.values.shape[-1] for s in (slots.values, slots.rotated) if s is not None)
    size = jnp.dtype(dtype).itemsize
    needed = sum(case.lengths) * KV_HEADS * kept * size
    of_values = sum(found[name] for name in ("values", "keys") if name in found)
    # A row's last block is read whole: half a block too much on average, 4096 slots here.
    assert needed <= of_values <= needed + BATCH * KV_HEADS * 4096 * kept * size
    # Scales, positions and angles of starts are small, all the rest does not grow with the slots.
    assert sum(found.values()) - of_values < 0.04 * of_values + 2**20


def test_blocks_behind_a_rows_end_are_not_read():
    case = UNIFIED[0]
    q, slots, sinks, keys_values = arrays(case, jnp.float32)
    values = slots.values.values
    for row, length in enumerate(case.lengths):
        values = values.at[:, row, :, -(-max(length, 1) // 32) * 32 :].set(jnp.nan)
    out = fused(case, q, slots._replace(values=Stored(values)), sinks)
    np.testing.assert_allclose(out, oracle(case, q, *keys_values, sinks), atol=1e-5)


# --- Planted mistakes -------------------------------------------------------------------------


def _window_one_wider(patch):
    right = decode.visible
    patch.setattr(decode, "visible", lambda q, kv, window: right(q, kv, window + 1))


def _stale_block(patch):
    right = decode_operands.block_at
    patch.setattr(decode_operands, "block_at", lambda i, used: right(i - 1, used))


def _last_block_left_out(patch):
    right = decode._blocks
    patch.setattr(decode, "_blocks", lambda *words: (right(*words)[0] - 1, right(*words)[1]))


def _operands(change):
    def plant(patch):
        right = decode.operands_of

        def wrong(*words):
            operands = right(*words)
            return operands._replace(**change(operands))

        patch.setattr(decode, "operands_of", wrong)

    return plant


def _first_layer(patch):
    right = decode.call

    def wrong(*words, scalars, **keys):
        return right(*words, scalars=[0 * scalars[0], *scalars[1:]], **keys)

    patch.setattr(decode, "call", wrong)


MISTAKES = {
    "a window one wider": (SEPARATE[1], _window_one_wider),
    "a block read again": (UNIFIED[0], _stale_block),
    "a block left out": (UNIFIED[0], _last_block_left_out),
    "queries not turned back": (
        UNIFIED[0],
        _operands(lambda x: {"start_cos": 1 + 0 * x.start_cos, "start_sin": 0 * x.start_sin}),
    ),
    "scales of values left out": (UNIFIED[2], _operands(lambda x: {"value_scales": None})),
    "scales of keys left out": (SEPARATE[2], _operands(lambda x: {"key_scales": None})),
    "k_scale left out": (UNIFIED[0], _operands(lambda x: {"k_scale": 1 + 0 * x.k_scale})),
    "another layer": (SEPARATE[0], _first_layer),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(mistake, monkeypatch):
    case, plant = MISTAKES[mistake]
    q, slots, sinks, keys_values = arrays(case, jnp.float32)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(
            fused(case, q, slots, sinks), oracle(case, q, *keys_values, sinks), atol=1e-2
        )


# --- Eight devices ----------------------------------------------------------------------------

MESH = {"data": 2, "tensor": 4}
SPLIT = {"alike": (8, 8), "one KV head": (8, 1), "not to be split": (6, 3)}


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


@pytest.mark.parametrize("heads", SPLIT)
def test_devices_give_what_one_gives(report, heads):
    assert report[heads] < 1e-12


def main():
    from hybrid.sharding import MeshConfig, make_mesh

    def run(heads):
        """The result of writing to a cache and attending to it."""
        case = Case("sharded", "value", 64, 3, is_int8=True, lengths=(60, 9, 64, 0), sinks=True)
        q, slots, sinks, _ = arrays(case, heads=heads, batch=4)
        at = case.positions()[0]
        new = jax.tree.map(lambda x: x[0, :, :, :3], slots.values)

        @jax.jit
        def both(slots):
            with dispatch.use_backend("tpu"):
                at_slots = jnp.where(at < 0, 64, at)
                values = writing.write(slots.values, jnp.int32(ROW), new, at_slots, 64)
            return fused(case, q, slots._replace(values=values), sinks)

        return np.asarray(both(slots))

    wanted = {name: run(heads) for name, heads in SPLIT.items()}
    with jax.set_mesh(make_mesh(MeshConfig(**MESH))):
        print(
            json.dumps(
                {name: float(np.abs(run(SPLIT[name]) - out).max()) for name, out in wanted.items()}
            )
        )


if __name__ == "__main__":
    main()
