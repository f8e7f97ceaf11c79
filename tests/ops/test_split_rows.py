"""The door to attention of rows split over `context`: equal to one device's, and what moves.

Devices are simulated. Run this file as a script to see the report.
"""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import simulated

from hybrid.ops.attention import context

# name: (mesh, documents, fields of the case); a row has 2 · context chunks.
CASES = {
    "halo of four chunks, packed": (
        {"context": 8},
        3,
        {"time": 48, "window_size": 12, "softcap": 3.0, "sinks": True},
    ),
    "halo within a chunk, one document": (
        {"context": 4, "tensor": 2},
        0,
        {"time": 48, "window_size": 4},
    ),
    "halo of all other chunks, copies": (
        {"context": 2, "data": 2, "expert": 2},
        0,
        {"time": 24, "window_size": 19},
    ),
    "window of the row": ({"context": 8}, 2, {"time": 48, "window_size": 48}),
    "several tiles a chunk": (
        {"context": 2, "fsdp": 2, "tensor": 2},
        3,
        {"time": 1200, "sinks": True, "scale": 0.5},
    ),
}
# The same for the kernels of TPUs, whose blocks are 128 tokens and more; interpreted.
KERNEL_CASES = {
    "one block a chunk, one document": ({"context": 4, "tensor": 2}, 0, {"time": 1024}),
    "blocks of both chunks, packed": (
        {"context": 2, "data": 2, "tensor": 2},
        3,
        {"time": 1024, "softcap": 3.0, "sinks": True, "scale": 0.5},
    ),
    "a halo before each chunk, packed": (
        {"context": 2, "data": 2, "tensor": 2},
        3,
        {"time": 512, "window_size": 150},
    ),
}
BYTES = 8  # of a float64


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


@pytest.mark.parametrize("case", [*CASES, *KERNEL_CASES])
def test_equals_one_device_in_values_and_gradients(report, case):
    errors = report["errors"][case]
    assert {"out", "q", "k", "v"} <= set(errors)
    assert max(errors.values()) < 1e-12


def test_kernels_serve_chunks_of_whole_blocks(report):
    assert report["kernels"] == {"blocks": True, "odd chunks": False}


def test_a_halo_moves_as_much_in_rows_of_any_length(report):
    # 15 tokens before each of two chunks, of 2 KV heads of 4, keys and values, there and back.
    wanted = {"collective-permute": 2 * 15 * 2 * 4 * 2 * 2 * BYTES}
    assert report["moved"]["local, 512"] == report["moved"]["local, 2048"] == wanted


def test_one_tensor_for_keys_and_values_moves_half_of_two(report):
    row = 512 * 2 * 4 * BYTES
    one, two = report["moved"]["unified, 512"], report["moved"]["separate, 512"]
    assert one == {"all-gather": row, "reduce-scatter": row // 8}
    assert two == {name: 2 * size for name, size in one.items()}


def test_every_device_has_an_equal_part_of_the_work_under_the_diagonal(report):
    # Two products of 4 forward and five backward for each pair of a query and a key, 4 heads.
    pairs = 512 * 513 / 2
    assert 1 < report["flops"] / (pairs * 7 * 2 * 4 * 4 / 8) < 1.1


@pytest.mark.parametrize("parts", [2, 3, 8])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (2, 3), (3, 2), (1, 6)])
def test_tiles_cover_the_diagonal_and_what_is_below_it(parts, queries, keys):
    chunk = 6
    time, stream = 2 * parts * chunk, np.argsort(context.place(np.arange(2 * parts), parts))
    positions = np.arange(time).reshape(-1, chunk)[stream].reshape(-1)
    counts = set()
    for part in range(parts):
        edge, inner = map(np.asarray, context.tiles(jnp.int32(part), parts, chunk, queries, keys))
        counts.add((len(edge), len(inner)))
        own, seen = positions.reshape(parts, -1)[part], np.zeros((2 * chunk, time), int)
        for tiles, is_edge in ((edge, True), (inner, False)):
            for block, first in tiles:
                rows = slice(block * queries, (block + 1) * queries)
                columns = positions[first : first + keys]
                shown = columns[None, :] <= own[rows, None]
                assert shown.any()
                assert shown.all() != is_edge
                seen[rows, columns] += 1
        below = np.arange(time)[None, :] <= own[:, None]
        assert (seen[below] == 1).all()
    assert len(counts) == 1


# --- The process with eight devices -----------------------------------------------------------


def main():
    from hybrid.ops import dispatch
    from hybrid.ops.attention.pallas import whole

    report = {"errors": {name: _errors(*case) for name, case in CASES.items()}, "moved": {}}
    whole._MOST_ROWS = whole._MOST_KEYS = 128
    with dispatch.use_backend("tpu"):
        report["errors"] |= {name: _errors(*case) for name, case in KERNEL_CASES.items()}
        report["kernels"] = {"blocks": _has_kernels(1024), "odd chunks": _has_kernels(1000)}
    for name in ("local, 512", "local, 2048", "unified, 512", "separate, 512"):
        kind, time = name.split(", ")
        report["moved"][name], flops = _compiled(kind, int(time))
        if kind == "unified":
            report["flops"] = flops
    print(json.dumps(report))


def _mesh(sizes):
    from hybrid.sharding import MeshConfig, make_mesh

    return make_mesh(MeshConfig(**({"data": 1} | sizes)))


def _errors(sizes, documents, fields):
    import jax
    import jax.numpy as jnp
    from cases import Case

    from hybrid.ops.attention import attend, attend_split

    case = Case("split", 2, num_heads=4, num_kv_heads=2, head_dim=4, documents=documents, **fields)
    arrays, band = case.arrays(jnp.float64), case.band()
    dout, sinks = arrays.pop("dout"), arrays.get("sinks")
    positions = jnp.broadcast_to(jnp.arange(case.time, dtype=jnp.int32), (2, case.time))
    scoring = {"softcap": case.softcap, "scale": case.scale}

    def whole(arrays):
        return attend(**arrays, band=band, implementation="reference", **scoring)

    def split(arrays):
        parts = context.num_parts(case.time)
        assert parts == sizes["context"]
        q, k, v = (context.to_stream(arrays[name]) for name in "qkv")
        out = attend_split(
            q,
            (k, v),
            lambda kv, _: kv,
            positions,
            band.q_segments,
            window_size=case.window_size,
            sinks=None if sinks is None else arrays["sinks"],
            **scoring,
        )
        return context.to_row(out)

    def run(function):
        def both(arrays, dout):
            out, pull = jax.vjp(function, arrays)
            return {"out": out, **pull(dout)[0]}

        return jax.device_get(jax.jit(both)(arrays, dout))

    one = run(whole)
    with jax.set_mesh(_mesh(sizes)):
        many = run(split)
    return {name: float(np.abs(one[name] - many[name]).max()) for name in one}


def _has_kernels(time):
    """Whether global attention of rows of so many tokens, over two devices, is by kernels."""
    import jax

    from hybrid.ops.attention import attend_split

    x, rows = jnp.zeros((1, time, 2, 4)), jnp.zeros((1, time), jnp.int32)
    with jax.set_mesh(_mesh({"context": 2, "data": 4})):
        call = lambda x: attend_split(x, (x, x), lambda kv, _: kv, rows, None)  # noqa: E731
        return "pallas_call" in str(jax.make_jaxpr(call)(x))


def _compiled(kind, time):
    """Result bytes of collectives by kind, and FLOPs, of one device, forward and backward."""
    import jax
    import jax.numpy as jnp

    from hybrid.costs.flops import count_flops
    from hybrid.model.mixers.kv import Separate, Unified
    from hybrid.ops import rope
    from hybrid.ops.attention import attend_split

    shapes = {"q": (1, time, 4, 4), "k": (1, time, 2, 4)}
    q, k = (jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes.values())
    scale = jax.ShapeDtypeStruct((4,), jnp.float64)
    kv = Unified(k, scale) if kind == "unified" else Separate(k, k)
    rows = jax.ShapeDtypeStruct((1, time), jnp.int32)
    window_size = 16 if kind == "local" else None

    def keys_values(kv, positions):
        return kv.keys_values(rope.rotation(positions, 4, theta=1e4, dtype=jnp.float64))

    def loss(q, kv, positions, segments):
        out = attend_split(q, kv, keys_values, positions, segments, window_size=window_size)
        return jnp.sum(out**2)

    with jax.set_mesh(_mesh({"context": 8})):
        text = jax.jit(jax.grad(loss, (0, 1))).lower(q, kv, rows, rows).compile().as_text()
    return _moved(text), count_flops(text)


def _moved(text):
    """Result bytes of the collectives that exchange arrays of tokens, by opcode."""
    moved = {}
    operation = r"f64\[([\d,]*)\]\S* (collective-permute|all-gather|reduce-scatter|all-to-all)\("
    for shape, opcode in re.findall(operation, text):
        size = BYTES * int(np.prod([int(n) for n in shape.split(",")]))
        moved[opcode] = moved.get(opcode, 0) + size
    return moved


if __name__ == "__main__":
    main()
