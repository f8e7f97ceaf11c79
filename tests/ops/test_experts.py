"""Experts: every implementation equals the oracle, drops no token, does no needless work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid.costs.flops import count_flops
from hybrid.ops import dispatch
from hybrid.ops.dispatch import Unsupported
from hybrid.ops.experts import EXPERTS, ExpertsRequest, blocked, ragged, reference

NAMES = ("x", "weights", "gate", "up", "down")
# (b, t, d, f, e, a), and which experts are ever chosen.
CASES = {
    "some experts unused": ((2, 37, 8, 6, 5, 2), 3),
    "one expert has every token": ((1, 50, 8, 4, 6, 1), 1),
    "every expert for every token": ((1, 30, 8, 4, 3, 3), 3),
    "one token": ((1, 1, 4, 4, 8, 2), 8),
    "full blocks": ((2, 128, 8, 6, 4, 2), 4),
}


def arrays(case, dtype=jnp.float64):
    (b, t, d, f, e, a), used = CASES[case]
    rng = np.random.default_rng(0)
    shapes = {"x": (b, t, d), "weights": (b, t, a), "gate": (e, d, f), "up": (e, d, f)}
    shapes |= {"down": (e, f, d), "dout": (b, t, d)}
    found = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    choice = np.argsort(rng.random((b, t, used)), axis=-1)[..., :a]
    return found | {"choice": jnp.asarray(choice, jnp.int32)}


# Blocks one by one and in waves, and the product that TPUs have.
PATHS = [(blocked, "cpu"), (blocked, "gpu"), (ragged, "cpu")]
FAST = pytest.mark.parametrize(("implementation", "backend"), PATHS)
ALL = pytest.mark.parametrize(("implementation", "backend"), [*PATHS, (reference, "cpu")])


@functools.partial(jax.jit, static_argnums=(0, 2))
def run(implementation, inputs, backend="cpu"):
    """The result and every gradient by name."""

    def call(values):
        x, weights, *kernels = (values[name] for name in NAMES)
        return implementation.experts(x, inputs["choice"], weights, *kernels)

    with dispatch.use_backend(backend):
        out, pullback = jax.vjp(call, {name: inputs[name] for name in NAMES})
        return {"out": out, **pullback(inputs["dout"])[0]}


@FAST
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_the_oracle(case, implementation, backend):
    inputs = arrays(case)
    got, wanted = run(implementation, inputs, backend), run(reference, inputs)
    for name, want in wanted.items():
        assert got[name].dtype == want.dtype
        np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_tpus_own_gradients_equal_the_oracle(case, monkeypatch):
    """The kernel that sums over each group's rows, interpreted."""
    monkeypatch.setattr(
        ragged, "over_groups", functools.partial(ragged.over_groups, interpret=True)
    )
    inputs = arrays(case, jnp.float32)
    got = run.__wrapped__(ragged, inputs, "tpu")
    for name, want in run(reference, inputs).items():
        assert got[name].dtype == want.dtype
        np.testing.assert_allclose(got[name], want, rtol=1e-3, atol=1e-3, err_msg=name)


@ALL
@pytest.mark.usefixtures("x64")
def test_experts_without_a_token_have_no_gradient(implementation, backend):
    got = run(implementation, arrays("some experts unused"), backend)
    for name in ("gate", "up", "down"):
        assert not np.asarray(got[name][3:]).any()
        assert np.asarray(got[name][:3]).any(axis=(1, 2)).all()


@ALL
@pytest.mark.usefixtures("x64")
def test_a_choice_of_none_adds_nothing(implementation, backend):
    """A device of an expert mesh sees its own experts alone: others' choices are index e."""
    inputs = arrays("some experts unused")
    e = len(inputs["gate"])
    first, second = (
        run(implementation, inputs | {"choice": jnp.where(mine, inputs["choice"], e)}, backend)[
            "out"
        ]
        for mine in (inputs["choice"] == 0, inputs["choice"] != 0)
    )
    whole = run(reference, inputs)["out"]
    np.testing.assert_allclose(first + second, whole, rtol=1e-12, atol=1e-12)
    nothing = run(implementation, inputs | {"choice": jnp.full_like(inputs["choice"], e)}, backend)
    assert not any(np.asarray(array).any() for array in nothing.values())


def test_the_oracle_is_the_formula():
    inputs = arrays("some experts unused", jnp.float32)
    x, w, gate, up, down = (np.asarray(inputs[name], np.float64) for name in NAMES)
    gelu = lambda v: 0.5 * v * (1 + np.tanh(0.7978845608 * (v + 0.044715 * v**3)))  # noqa: E731
    wanted = np.zeros_like(x)
    for b, t, j in np.ndindex(w.shape):
        e = int(inputs["choice"][b, t, j])
        row = x[b, t]
        wanted[b, t] += w[b, t, j] * ((gelu(row @ gate[e]) * (row @ up[e])) @ down[e])
    np.testing.assert_allclose(run(reference, inputs)["out"], wanted, atol=1e-4)


@FAST
def test_bfloat16_is_as_close_as_the_oracle(implementation, backend):
    narrow = arrays("full blocks", jnp.bfloat16)
    exact = run(reference, {name: jnp.asarray(v, jnp.float32) if v.dtype != jnp.int32 else v
                            for name, v in narrow.items()})  # fmt: skip
    got, oracle = run(implementation, narrow, backend), run(reference, narrow)
    for name, want in exact.items():
        errors = [float(jnp.abs(r[name].astype(jnp.float32) - want).max()) for r in (got, oracle)]
        assert got[name].dtype == jnp.bfloat16
        assert errors[0] <= 2 * errors[1] + 0.02, name


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_work_grows_with_the_choices_and_not_with_the_experts(backend):
    def flops(num_experts):
        shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
        wide = shape(num_experts, 16, 32)
        inputs = shape(1, 512, 16), jax.ShapeDtypeStruct((1, 512, 2), jnp.int32)
        inputs += shape(1, 512, 2), wide, wide, shape(num_experts, 32, 16)
        with dispatch.use_backend(backend):
            lowered = jax.jit(lambda *inputs: blocked.experts(*inputs)).lower(*inputs)
        return count_flops(lowered.compile().as_text())

    rows = 512 * 2
    few, many = flops(4), flops(32)
    assert few <= 1.6 * rows * 6 * 16 * 32
    assert many <= 2.6 * rows * 6 * 16 * 32  # 16 times the oracle's work at 4 would be 8 × this


def test_the_door_chooses_by_backend_and_a_named_one_never_falls_back():
    cpu, gpu, tpu = (
        ExpertsRequest(backend, "float32", 4, 2, 16, 32) for backend in ("cpu", "gpu", "tpu")
    )
    assert EXPERTS.choose(cpu).name == EXPERTS.choose(gpu).name == "blocked"
    assert EXPERTS.choose(tpu).name == "ragged"
    assert EXPERTS.choose(tpu, "reference").name == "reference"
    with pytest.raises(Unsupported, match="ragged_dot computes all experts"):
        EXPERTS.choose(gpu, "ragged")
    with pytest.raises(Unsupported, match="for CPUs and GPUs"):
        EXPERTS.choose(tpu, "blocked")
    with pytest.raises(ValueError, match="no implementation 'dense'; known: auto, ragged"):
        EXPERTS.choose(cpu, "dense")
