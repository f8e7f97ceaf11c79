"""What every attention implementation must do, checked against the oracle.

A test module subclasses `AttentionContract` (for the oracle `AttentionBehaviour`); what is refused
must be refused with a reason, all others must equal `reference.attend` in values and in each
gradient, and equal themselves when run again.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import OFFSETS, SMALL, Case

from hybrid.ops.attention import AttentionRequest, attend
from hybrid.ops.band import Band
from hybrid.ops.dispatch import Unsupported

FLOAT32 = {"values": 1e-5, "gradients": 1e-4}
FLOAT64 = {"values": 1e-12, "gradients": 1e-12}


@functools.partial(jax.jit, static_argnames=("scale", "softcap", "implementation"))
def run(q, k, v, dout, band, *, sinks=None, scale=1.0, softcap=None, implementation):
    """Values and the gradients of sum(out · dout), by name."""
    call = functools.partial(attend, scale=scale, softcap=softcap, implementation=implementation)
    inputs = {"q": q, "k": k, "v": v} | ({} if sinks is None else {"sinks": sinks})
    out, pullback = jax.vjp(lambda inputs: call(**inputs, band=band), inputs)
    gradients = {f"d{name}": gradient for name, gradient in pullback(dout)[0].items()}
    return {"out": out, **gradients}


def run_case(case: Case, implementation: str, dtype=jnp.float32, seed: int = 0):
    options = {"scale": case.scale, "softcap": case.softcap}
    arrays = case.arrays(dtype, seed)
    return run(**arrays, band=case.band(seed), implementation=implementation, **options)


def assert_equal_to_the_oracle(got: dict, wanted: dict, tolerance: dict):
    """`tolerance` is absolute for values, and relative to the largest entry of a gradient."""
    for name, want in wanted.items():
        kind = "values" if name == "out" else "gradients"
        size = max(1.0, float(jnp.max(jnp.abs(want))))
        error = float(jnp.max(jnp.abs(got[name] - want))) / size
        assert error <= tolerance[kind], f"{name}: off by {error:.2e} of {size:.2e}"
        assert got[name].dtype == want.dtype, name


def assert_as_close_in_bfloat16(case: Case, implementation: str, times: int):
    """Errors against float64 are at most `times` the oracle's, and 0.02."""
    arrays = case.arrays(jnp.bfloat16)
    with jax.enable_x64(True):
        exact = {name: array.astype(jnp.float64) for name, array in arrays.items()}
        exact = run(**exact, band=case.band(), implementation="reference")
    got, wanted = (run_case(case, n, jnp.bfloat16) for n in (implementation, "reference"))
    for name, truth in exact.items():
        errors = [
            float(np.abs(np.asarray(r[name], float) - np.asarray(truth)).max())
            for r in (got, wanted)
        ]
        assert got[name].dtype == jnp.bfloat16
        assert errors[0] <= times * errors[1] + 0.02, (case.name, name, errors)


class AttentionBehaviour:
    """Subclass with `implementation`, and with `serves(case)` where it refuses some."""

    implementation: str

    def serves(self, case: Case) -> bool:
        return True

    def served(self, case: Case, band: Band | None = None, arrays: dict | None = None) -> bool:
        """Whether to go on with a case; one that is not served must be refused with a reason."""
        band = case.band() if band is None else band
        arrays = case.arrays() if arrays is None else arrays
        if self.serves(case) and (band.is_regular or self.serves_positions()):
            return True
        options = {"softcap": case.softcap, "sinks": arrays.get("sinks")}
        options["implementation"] = self.implementation
        with pytest.raises(Unsupported, match=f"^{self.implementation}: .+"):
            attend(*(arrays[name] for name in "qkv"), band, **options)
        return False

    def serves_positions(self) -> bool:
        return True

    def test_a_sink_takes_its_share_of_a_softmax_and_has_no_value(self):
        case = Case("sinks", 1, 30, 2, 1, 8, window_size=5, sinks=True)
        if not self.served(case):
            return
        arrays = case.arrays()
        call = functools.partial(
            attend, *(arrays[n] for n in "qkv"), case.band(), implementation=self.implementation
        )
        plain = call()
        np.testing.assert_allclose(call(sinks=jnp.full(2, -1e9)), plain, atol=1e-6)
        np.testing.assert_array_equal(call(sinks=jnp.full(2, 1e9)), jnp.zeros_like(plain))
        # The first token's one score against the sink: a sigmoid of their difference.
        score = jnp.einsum("nh,h->n", arrays["q"][0, 0], arrays["k"][0, 0, 0])
        sinks = jnp.asarray([0.3, -0.7])
        share = jax.nn.sigmoid(score - sinks)[:, None]
        np.testing.assert_allclose(
            call(sinks=sinks)[0, 0], share * arrays["v"][0, 0], rtol=1e-5, atol=1e-6
        )

    def test_gives_the_same_bits_again(self):
        for case in SMALL[:3]:
            if self.served(case):
                first, second = (run_case(case, self.implementation) for _ in range(2))
                for name in first:
                    np.testing.assert_array_equal(first[name], second[name], err_msg=name)

    @pytest.mark.parametrize("window_size", [1, 2, 7, 64])
    def test_token_sees_exactly_window_size_keys(self, window_size):
        # Zero scores weigh all visible keys alike; one-hot values then show which they are.
        time = 40
        case = Case("counting", 1, time, 1, 1, time, window_size=window_size)
        if not self.served(case):
            return
        zeros, values = jnp.zeros((1, time, 1, time)), jnp.eye(time)[None, :, None]
        out = attend(zeros, zeros, values, case.band(), implementation=self.implementation)
        seen = np.asarray(out[0, :, 0]) > 0
        np.testing.assert_array_equal(seen.sum(1), np.minimum(np.arange(time) + 1, window_size))
        assert seen.diagonal().all()

    @pytest.mark.parametrize("window_size", [6, None])
    def test_no_token_depends_on_a_later_one_or_one_beyond_its_window(self, window_size):
        case, at = Case("causal", 1, 48, 2, 1, 8, window_size=window_size), 20
        if not self.served(case):
            return
        arrays = case.arrays()

        def one(k, v):
            out = attend(arrays["q"], k, v, case.band(), implementation=self.implementation)
            return jnp.sum(out[:, at])

        earliest = 0 if window_size is None else at - window_size + 1
        for gradient in jax.grad(one, (0, 1))(arrays["k"], arrays["v"]):
            touched = np.flatnonzero(np.abs(np.asarray(gradient)).sum((0, 2, 3)))
            np.testing.assert_array_equal(touched, np.arange(earliest, at + 1))

    def test_a_query_without_keys_gives_zeros_and_finite_gradients(self):
        case = Case("unseen", 1, 16, 2, 1, 8, window_size=4)
        positions = jnp.arange(16, dtype=jnp.int32)[None]
        empty = jnp.where(positions < 9, -1, positions)  # the first nine slots hold nothing
        band = Band(window_size=4, q_positions=positions, kv_positions=empty)
        if not self.served(case, band):
            return
        got = run(**case.arrays(), band=band, implementation=self.implementation)
        assert not np.asarray(got["out"][:, :9]).any()
        assert np.asarray(got["out"][:, 9:]).all()
        assert not np.asarray(got["dq"][:, :9]).any()
        assert all(np.isfinite(np.asarray(array)).all() for array in got.values())


class AttentionContract(AttentionBehaviour):
    """The same, and equality with the oracle."""

    @pytest.mark.parametrize("case", SMALL[::3], ids=lambda case: case.name)
    def test_equals_the_oracle_in_float32(self, case):
        if self.served(case):
            got, wanted = (run_case(case, name) for name in (self.implementation, "reference"))
            assert_equal_to_the_oracle(got, wanted, FLOAT32)

    @pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
    def test_equals_the_oracle_in_float64(self, case, x64):
        if self.served(case):
            names = (self.implementation, "reference")
            got, wanted = (run_case(case, name, jnp.float64) for name in names)
            assert got["out"].dtype == jnp.float64
            assert_equal_to_the_oracle(got, wanted, FLOAT64)

    @pytest.mark.parametrize("case", OFFSETS, ids=lambda case: case.name)
    def test_an_offset_equals_the_oracle_with_positions(self, case, x64):
        if not self.served(case):
            return
        arrays, options = case.arrays(jnp.float64), {"scale": case.scale, "softcap": case.softcap}
        got = run(**arrays, band=case.band(), implementation=self.implementation, **options)
        explicit = case.band_of_positions()
        wanted = run(**arrays, band=explicit, implementation="reference", **options)
        assert_equal_to_the_oracle(got, wanted, FLOAT64)
        behind = slice(case.offset + case.time, None)
        assert not any(np.asarray(got[name][:, behind]).any() for name in ("dk", "dv"))

    @pytest.mark.parametrize("window_size", [None, 1, 20])
    @pytest.mark.parametrize("documents", [0, 3])
    def test_equals_the_oracle_where_positions_are_given(self, window_size, documents, x64):
        case = Case("ring", 2, 40, 4, 2, 8, window_size=window_size)
        band, arrays = ring(window_size, documents), case.arrays(jnp.float64)
        rng = np.random.default_rng(1)
        arrays |= {name: jnp.asarray(rng.normal(size=(2, 90, 2, 8))) for name in "kv"}
        if not self.served(case, band, arrays):
            return
        names = (self.implementation, "reference")
        got, wanted = (run(**arrays, band=band, implementation=name) for name in names)
        assert_equal_to_the_oracle(got, wanted, FLOAT64)


def ring(window_size: int | None, documents: int) -> Band:
    """40 queries against 90 cache slots in another order, a third of them empty."""
    rng = np.random.default_rng(0)
    slots = np.stack([rng.permutation(90) for _ in range(2)])
    slots[rng.random(slots.shape) < 1 / 3] = -1
    queries = rng.integers(0, 90, (2, 40))
    arrays = {"q_positions": queries, "kv_positions": slots}
    if documents:
        arrays |= {"q_segments": queries * documents // 90, "kv_segments": slots * documents // 90}
    arrays = {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}
    return Band(window_size=window_size, **arrays)


def request(**changes) -> AttentionRequest:
    """A plain local request with some fields changed."""
    fields = {"backend": "cpu", "dtype": "float32", "head_dim": 64}
    fields |= {"query_length": 1024, "key_length": 1024, "window_size": 128}
    return AttentionRequest(**(fields | changes))
