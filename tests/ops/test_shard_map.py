"""Operations that the compiler cannot split: under `shard_map` on eight devices nothing changes.

The attention implementations can be left to the compiler; here they are said to need `shard_map`,
as kernels do. Run this file as a script to see the report.
"""

import dataclasses
import json

import pytest
import simulated

MESHES = {
    "rows and heads": {"data": 2, "fsdp": 2, "tensor": 2},
    "heads": {"data": 1, "tensor": 8},
    "copies": {"data": 2, "tensor": 2, "expert": 2},
    "d_model": {"data": 1, "fsdp": 4, "tensor": 2},
}
# Query heads, KV heads and the parts of each that a device has, by size of the tensor axis.
HEADS = {
    "split alike": (8, 8, {2: (4, 4), 8: (1, 1)}),
    "one KV head": (8, 1, {2: (4, 1), 8: (1, 1)}),
    "not to be split": (6, 3, {2: (6, 3), 8: (6, 3)}),
}


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mesh", MESHES)
def test_attention_gives_the_same_values_and_gradients(report, mesh, heads):
    errors, parts = report["attention"][mesh][heads]
    assert set(errors) == {"out", "dq", "dk", "dv", "dsinks"}
    assert max(errors.values()) < 1e-12
    assert tuple(parts) == HEADS[heads][2][MESHES[mesh]["tensor"]]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mesh", MESHES)
def test_kernels_of_tpus_give_the_same_values_and_gradients(report, mesh, heads):
    errors = report["kernels"][mesh][heads]
    assert set(errors) == {"out", "dq", "dk", "dv", "dsinks"}
    assert max(errors.values()) < 1e-12


@pytest.mark.parametrize("mesh", MESHES)
def test_rows_of_a_table_and_the_loss_give_the_same_values_and_gradients(report, mesh):
    errors = report["tables"][mesh]
    assert set(errors) == {
        *("out", "dtable", "rows", "dtables"),
        *("nll", "z", "dhidden", "dembedding", "scores", "tops"),
    }
    assert max(errors.values()) < 1e-11


@pytest.mark.parametrize("mesh", MESHES)
def test_experts_give_the_same_values_and_gradients(report, mesh):
    assert max(report["experts"][mesh].values()) < 1e-11


def test_gradients_of_bfloat16_streams_are_summed_over_devices_in_float32(report):
    assert report["scattered"] == {"experts": 3 * ["float32"], "loss": ["float32"]}


def test_attention_that_the_compiler_splits_is_left_to_it(report):
    assert report["shard_maps"] == {"left to the compiler": 0, "needed": 1}


# --- The process with eight devices -----------------------------------------------------------


def main():
    import jax

    from hybrid.ops import dispatch
    from hybrid.sharding import MeshConfig, make_mesh

    meshes = {name: make_mesh(MeshConfig(**sizes)) for name, sizes in MESHES.items()}
    report = {
        "attention": {},
        "kernels": {},
        "experts": {},
        "tables": {},
        "shard_maps": _shard_maps(meshes["heads"]),
    }
    with jax.set_mesh(meshes["d_model"]):
        report["scattered"] = _scattered()
    _need_shard_map()
    one = {name: _attention(*heads[:2]) for name, heads in HEADS.items()}, _experts(), _tables()
    for name, mesh in meshes.items():
        with jax.set_mesh(mesh):
            report["attention"][name] = {
                heads: (_errors(one[0][heads], _attention(*sizes[:2])), _parts(*sizes[:2]))
                for heads, sizes in HEADS.items()
            }
            with dispatch.use_backend("tpu"):
                report["kernels"][name] = {
                    heads: _errors(one[0][heads], _attention(*sizes[:2]))
                    for heads, sizes in HEADS.items()
                }
            report["experts"][name] = _errors(one[1], _experts())
            report["tables"][name] = _errors(one[2], _tables())
    print(json.dumps(report))


def _need_shard_map():
    from hybrid.ops import attention

    attention.ATTENTION = dataclasses.replace(
        attention.ATTENTION,
        implementations=tuple(
            dataclasses.replace(one, needs_shard_map=True)
            for one in attention.ATTENTION.implementations
        ),
    )


def _call(num_heads, num_kv_heads):
    """A function of q, k, v and sinks, and its arguments: packed rows behind a halo."""
    import jax.numpy as jnp
    import numpy as np
    from cases import Case

    from hybrid.ops.attention import attend

    sizes = {"window_size": 9, "documents": 3, "sinks": True, "offset": 5, "softcap": 3.0}
    case = Case("sharded", 8, 21, num_heads, num_kv_heads, 4, **sizes)
    arrays = case.arrays(jnp.float64)
    dout = np.asarray(arrays.pop("dout"))

    def call(arrays, band):
        return attend(**arrays, band=band, softcap=case.softcap)

    return call, arrays, case.band(), dout


def _attention(num_heads, num_kv_heads):
    import jax

    call, arrays, band, dout = _call(num_heads, num_kv_heads)

    @jax.jit
    def both(arrays, band, dout):
        out, pull = jax.vjp(lambda arrays: call(arrays, band), arrays)
        return {"out": out} | {f"d{name}": grad for name, grad in pull(dout)[0].items()}

    return jax.device_get(both(arrays, band, dout))


def _parts(num_heads, num_kv_heads):
    """Query and KV heads of one device, as requests say."""
    from hybrid.ops.attention import AttentionRequest

    _, arrays, band, _ = _call(num_heads, num_kv_heads)
    request = AttentionRequest.of(arrays["q"], arrays["k"], band, None)
    return request.num_heads, request.num_kv_heads


def _shard_maps(mesh):
    """How many there are in the traced program, without and with the need."""
    import jax

    from hybrid.ops import attention

    kept, counts = attention.ATTENTION, {}
    for name in ("left to the compiler", "needed"):
        call, arrays, band, _ = _call(8, 1)
        with jax.set_mesh(mesh):
            counts[name] = str(jax.make_jaxpr(call)(arrays, band)).count("shard_map[")
        _need_shard_map()
    attention.ATTENTION = kept
    return counts


def _experts():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from hybrid.ops.experts import experts

    rng = np.random.default_rng(0)
    choice = jnp.asarray(np.argsort(rng.random((8, 6, 4)), axis=-1)[..., :2], jnp.int32)
    shapes = {"x": (8, 6, 4), "weights": (8, 6, 2), "gate": (4, 4, 8), "up": (4, 4, 8)}
    shapes |= {"down": (4, 8, 4), "dout": (8, 6, 4)}
    arrays = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    dout = arrays.pop("dout")

    @jax.jit
    def both(arrays):
        out, pull = jax.vjp(lambda arrays: experts(choice=choice, **arrays), arrays)
        return {"out": out} | {f"d{name}": grad for name, grad in pull(dout)[0].items()}

    return jax.device_get(both(arrays))


def _tables():
    """A lookup, one in the tables of three layers, the loss in blocks that overlap, and scores; the
    vocabulary is 48."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from hybrid import axes
    from hybrid.ops.embedding import lookup, lookup_layers
    from hybrid.ops.loss import cross_entropy, score

    rng = np.random.default_rng(0)
    table, hidden, dout = (
        jnp.asarray(rng.normal(size=shape)) for shape in ((48, 8), (8, 6, 8), (8, 6, 8))
    )
    tokens = jnp.asarray(rng.integers(0, 48, (8, 6)), jnp.int32)
    mask = jnp.asarray(rng.random((8, 6)) < 0.7)

    def loss(hidden, table):
        sums = cross_entropy(hidden, table, tokens, mask, softcap=3.0, block_size=5)
        return sums.nll + 0.1 * sums.z, (sums.nll, sums.z)

    @jax.jit
    def run(table, hidden, dout):
        def of_layers(table):
            tables = jnp.stack([table, 2 * table, table[::-1]])
            return lookup_layers(tables, tokens, hidden.dtype, axes.EMBED)

        out, pull = jax.vjp(lambda table: lookup(table, tokens, hidden.dtype), table)
        rows, pull_rows = jax.vjp(of_layers, table)
        drows = jnp.stack([dout, 3 * dout, jnp.sin(dout)])
        gradients, (nll, z) = jax.grad(loss, (0, 1), has_aux=True)(hidden, table)
        scores = score(hidden, table, tokens, mask, with_top=True, block_size=5)
        values = {"out": out, "dtable": pull(dout)[0], "nll": nll, "z": z, "scores": scores.nll}
        values |= {"rows": rows, "dtables": pull_rows(drows)[0]}
        dhidden, dembedding = gradients
        return values | {"dhidden": dhidden, "dembedding": dembedding, "tops": scores.is_top * 1.0}

    return jax.device_get(run(table, hidden, dout))


def _scattered():
    """What each reduce-scatter of a gradient adds up, bfloat16 streams and float32 weights."""
    import re

    import jax
    import jax.numpy as jnp

    from hybrid.ops.experts import experts
    from hybrid.ops.loss import cross_entropy

    x, table = jnp.ones((8, 6, 8), jnp.bfloat16), jnp.ones((48, 8), jnp.float32)
    tokens, mask = jnp.zeros((8, 6), jnp.int32), jnp.ones((8, 6), bool)
    choice, weights = jnp.zeros((8, 6, 1), jnp.int32), jnp.ones((8, 6, 1), jnp.float32)
    kernels = [jnp.ones(shape, jnp.float32) for shape in ((4, 8, 4), (4, 8, 4), (4, 4, 8))]

    def loss(table):
        return cross_entropy(x, table, tokens, mask).nll

    def routed(kernels):
        return jnp.sum(experts(x, choice, weights, *kernels).astype(jnp.float32))

    programs = {"loss": (loss, table), "experts": (routed, kernels)}
    names = {"f32": "float32", "bf16": "bfloat16"}
    return {
        name: [
            names.get(found, found)
            for found in re.findall(
                r":(\w+)\[[\d,]*\] = reduce_scatter", str(jax.make_jaxpr(jax.grad(run))(argument))
            )
        ]
        for name, (run, argument) in programs.items()
    }


def _errors(one, many):
    import numpy as np

    return {name: float(np.abs(array - many[name]).max()) for name, array in one.items()}


if __name__ == "__main__":
    main()
