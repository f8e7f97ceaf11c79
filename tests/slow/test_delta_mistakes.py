"""Mistakes planted in the delta rule and its mixers: checks that stand elsewhere find each."""

import functools

import jax.numpy as jnp
import pytest
from model.mixers import test_gated_deltanet, test_rwkv7
from model.planted import assert_found, planted
from ops.test_delta_rule import CHUNK, RULES, by_steps, in_chunks, inputs

from hybrid.model.mixers import gated_deltanet, kimi_delta, rwkv7
from hybrid.ops import delta_rule

pytestmark = pytest.mark.weekly


# --- The recurrence --------------------------------------------------------------------------

RECURRENCE = {
    "the state grows as it should decay": (
        "exp(after[..., -1:, :]), 0)", "exp(-after[..., -1:, :]), 0)",
    ),
    "b reads after the decay": ("((before, b), (after, q))", "((after, b), (after, q))"),
    "q reads before the decay": ("((before, b), (after, q))", "((before, b), (before, q))"),
    "a token does not read its own write": ("m = jnp.where(is_seen", "m = jnp.where(is_earlier"),
    "other documents are seen": ("return is_one & ", "return (is_one | True) & "),
    "the state enters documents that begin": ("jnp.where(begun == 0", "jnp.where(begun >= 0"),
    "the state outlives its document": ("begun[..., -1:, :] == 0", "begun[..., -1:, :] >= 0"),
    "writes outlive their document": ("begun == begun[..., -1:, :]", "begun >= 0"),
    "the triangular system is not solved": ("for x in (rows[0], v))", "for x in (rows[0] * 0, v))"),
    "columns decay from the start": ("jnp.exp(middle - column_log)", "jnp.exp(middle)"),
    "beta is missing from the erased": ("b = -beta *", "b = -"),
    "beta is missing from the written": ("beta * v, log_decay", "v, log_decay"),
    "the last chunk is left out": ("values[:, :time]", "jnp.roll(values, size, 1)[:, :time]"),
}  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mistake", RECURRENCE)
def test_the_step_by_step_recurrence_notices(mistake):
    cases = {rule: inputs(rule, 3 * CHUNK - 1, resets=(5, CHUNK + 3)) for rule in RULES}
    wanted = {rule: by_steps(rule, *case) for rule, case in cases.items()}
    with planted(delta_rule, *RECURRENCE[mistake]):
        worst = max(
            float(jnp.abs(got - each).max())
            for rule, case in cases.items()
            for got, each in zip(in_chunks(rule, *case), wanted[rule], strict=True)
        )
    assert not worst < 1e-6


# --- The mixers ------------------------------------------------------------------------------

DELTANET = {
    "decay grows": ("return -rate *", "return rate *"),
    "beta is missing": ("self._beta(x),", "self._beta(x) * 0 + 1,"),
    "queries are no unit vectors": ("unit(wide(q))", "wide(q)"),
    "keys are no unit vectors": ("unit(wide(k))", "wide(k)"),
    "queries are not scaled": ("* self.spec.head_dim**-0.5", ""),
    "the gate is inside the norm": (
        "(self.o_norm(values) * self._gate(x))", "self.o_norm(values * self._gate(x))",
    ),
    "the convolution has no SiLU": ("jax.nn.silu(mixed)", "(mixed)"),
    "the convolution is turned": ("convolution(inputs,", "convolution(inputs[:, ::-1],"),
    "heads of values take turns at the keys": (
        "jnp.repeat(x, self.spec.num_heads // self.spec.num_key_heads, axis=2)",
        "jnp.tile(x, (1, 1, self.spec.num_heads // self.spec.num_key_heads, 1))",
    ),
    "heads of values read the next keys": (
        "return jnp.repeat(x,", "return jnp.repeat(jnp.roll(x, 1, axis=2),",
    ),
    "all heads of values read the first keys": (
        "return jnp.repeat(x,", "return jnp.repeat(jnp.broadcast_to(x[:, :, :1], x.shape),",
    ),
}  # fmt: skip
RWKV = {
    "decay grows": ("return -FASTEST *", "return FASTEST *"),
    "erases twice the other way": ("-share * erased", "share * erased"),
    "the erased key is no unit vector": (
        "unit(k * self._of_heads(self.erase_key), eps=_UNIT_EPS)",
        "(k * self._of_heads(self.erase_key))",
    ),
    "the written key is not lowered": ("k = k * (1 +", "k = k + 0 * (1 +"),
    "the shift is the wrong way": ("positions, last) - x", "positions, last) + x"),
    "no bonus": ("+ bonus * v", "+ 0 * bonus * v"),
    "the gate is before the bonus": (
        "(self._normed(values) + bonus * v) * self.gate(mixed[\"g\"]).astype(v.dtype)",
        "self._normed(values) * self.gate(mixed[\"g\"]).astype(v.dtype) + bonus * v",
    ),
    "the norm's epsilon is that of others": ("None, eps=NORM_EPS)", "None, eps=1e-1)"),
    "the first values are not mixed in": ("v = v + (donated - v) * first", "v = v + 0 * first"),
    "the share is that of the own values": (
        "v = v + (donated - v) * first", "v = donated + (v - donated) * first",
    ),
    "the share is that of the keys": (
        'self.value(mixed["v"]), self.value_bias', 'self.value(mixed["k"]), self.value_bias',
    ),
}  # fmt: skip
FILES = {"D": (gated_deltanet, DELTANET), "W": (rwkv7, RWKV)}


@pytest.mark.parametrize(
    ("letter", "mistake"),
    [(letter, name) for letter, (_, table) in FILES.items() for name in table],
)
def test_parity_notices(letter, mistake):
    parity = pytest.importorskip("slow.test_mixer_parity_delta")
    checks = {
        "D": functools.partial(parity.test_gated_deltanet_equals_qwen3_next, 2),
        "W": functools.partial(parity.test_rwkv7_equals_the_package_rwkv, 1),
    }
    module, table = FILES[letter]
    assert_found(checks[letter], module, *table[mistake])


KIMI = {
    "the gate is a SiLU": ("jax.nn.sigmoid(wide", "jax.nn.silu(wide"),
    "the gate has the decay's weights": ("wide(self.gate(x))", "wide(self.decay(x))"),
    "decays are not those of a channel": (
        "self.decay_rate(self.decay(x))", "self.decay_rate(self.decay(x)).mean(-1, keepdims=True)",
    ),
    "the decay is the step itself": ("self.decay_rate(self.decay(x))", "self.decay(x)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", KIMI)
def test_parity_of_kimi_delta_notices(mistake):
    parity = pytest.importorskip("slow.test_mixer_parity_delta")
    assert_found(parity.test_kimi_delta_equals_kimi_linear, kimi_delta, *KIMI[mistake])


STATE = {
    "D": (test_gated_deltanet.TestGatedDeltaNet, {
        "the convolution forgets its inputs": ("tokens, before)", "tokens, 0 * before)"),
        "the state is bfloat16": (
            "ShapeDtypeStruct(matrix, wide)", "ShapeDtypeStruct(matrix, jnp.bfloat16)",
        ),
        "padding decays the state": (
            "jnp.where(is_real, self._log_decay(x), 0)", "self._log_decay(x)",
        ),
        "padding is written": ("jnp.where(is_real, unit(wide(k)), 0)", "unit(wide(k))"),
        "documents never begin": ("tokens.is_first & tokens.is_real,", "tokens.is_first & False,"),
    }),
    "W": (test_rwkv7.TestRwkv7, {
        "the last token is one off": ("2, tokens.num_new)", "2, tokens.num_new - 1)"),
        "padding decays the state": (
            'jnp.where(is_real, self._log_decay(mixed["w"]), 0)', 'self._log_decay(mixed["w"])',
        ),
        "padding is written": ("jnp.where(is_real, k, 0)", "k"),
        "documents never begin": ("tokens.is_first & tokens.is_real,", "tokens.is_first & False,"),
    }),
}  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("letter", "mistake"),
    [(letter, name) for letter, (_, table) in STATE.items() for name in table],
)
def test_the_contract_notices(letter, mistake):
    contract, table = STATE[letter]
    errors = (AssertionError, TypeError)  # of a scan whose state changes its dtype
    check = functools.partial(_run, contract())
    assert_found(check, FILES[letter][0], *table[mistake], error=errors)


def _run(checks):
    checks.test_documents_of_a_row_do_not_see_each_other()
    checks.test_rows_of_different_lengths_equal_each_alone()
    checks.test_chunks_of_any_size_equal_the_forward(3)
