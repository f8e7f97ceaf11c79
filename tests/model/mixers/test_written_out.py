"""Mamba-2 and the RG-LRU equal their equations; every planted mistake is found by the same check.

A mistake is (what is wrong, module, a piece of its text, what is put in its place).
"""
# ruff: noqa: E501 - a mistake a line

import functools

import pytest
from model.mixers import written_out
from model.planted import assert_found

from hybrid.model.mixers import mamba2, recurrent, rg_lru
from hybrid.ops import linear_recurrence, short_convolution, state_space

MISTAKES = {
    "M": [
        ("decay grows", mamba2, "=-jnp.exp(self.a_log", "=jnp.exp(self.a_log"),
        ("Δ missing", mamba2, "(values * dt[..., None])", "values"),
        ("skip missing", mamba2, "y + self.skip", "y + 0 * self.skip"),
        ("skip of Δ·x", mamba2, "None] * values, state", "None] * inputs.x, state"),
        ("gate without silu", mamba2, "y * jax.nn.silu(", "y * ("),
        ("norm before gate", mamba2, "y = y * jax.nn.silu(", "y = self._normed(_flat(y)).reshape(y.shape) * jax.nn.silu("),
        ("one norm for all groups", mamba2, "num_groups, -1)\n        unit", "num_groups * 0 + 1, -1)\n        unit"),
        ("padding counts", mamba2, "jnp.where(tokens.is_real[..., None], dt, 0)", "dt"),
        ("B and C exchanged", mamba2, "write, read = jnp", "read, write = jnp"),
        ("state in bfloat16", mamba2, "(state, wide)", "(state, jnp.dtype(self.dtype))"),
        ("a token does not see itself", state_space, "jnp.tri(total.shape[-1]", "jnp.tri(total.shape[-1], k=-1"),
        ("documents see each other", state_space, "document[:, None, :]) &", "document[:, None, :] * 0 + document[:, :, None]) &"),
        ("the state outlives its document", state_space, "document == 0", "document >= 0"),
        ("a chunk's end off by one", state_space, "total[..., -1:] - total", "total[..., -2:-1] - total"),
    ],
    "R": [
        ("decay grows", rg_lru, "-SHARPNESS *", "SHARPNESS *"),
        ("gates exchanged", rg_lru, "return self.recurrence_gate, self.input_gate", "return self.input_gate, self.recurrence_gate"),
        ("a in place of a²", rg_lru, "-jnp.expm1(2 * log_a)", "-jnp.expm1(log_a)"),
        ("factor missing", rg_lru, "factor * i * x", "i * x"),
        ("factor at a first token", rg_lru, "jnp.where(is_first, 1, bounded", "jnp.where(is_first, 0.5, bounded"),
        ("the state outlives its document", rg_lru, "jnp.where(is_first, 0, jnp.exp(log_a))", "jnp.exp(log_a)"),
        ("padding decays", rg_lru, "jnp.exp(log_a)), 1)", "jnp.exp(log_a)), 0.5)"),
        ("padding counts", rg_lru, "jnp.where(is_real, factor * i * x, 0)", "factor * i * x"),
        ("gate without gelu", rg_lru, "jax.nn.gelu(self.gate_proj(x), approximate=True)", "self.gate_proj(x)"),
        ("state in bfloat16", rg_lru, "((self.width,), wide)", "((self.width,), narrow)"),
        ("one token late", linear_recurrence, "return h, h\n\n    tokens", "return h, h - token[1]\n\n    tokens"),
    ],
}  # fmt: skip
OF_BOTH = [
    ("convolution off by one", short_convolution, "start = width - 1 - back", "start = width - back"),
    ("convolution across documents", short_convolution, "positions >= back", "positions >= 0"),
    ("inputs kept off by one", short_convolution, "jnp.arange(width - 1)[None]", "jnp.arange(1, width)[None]"),
    ("state not read", recurrent, "if state is None:\n        shapes", "if True:\n        shapes"),
]  # fmt: skip
ALL = [
    pytest.param(letter, *mistake[1:], id=f"{letter}: {mistake[0]}")
    for letter, mistakes in MISTAKES.items()
    for mistake in (*mistakes, *OF_BOTH)
]


@pytest.mark.parametrize("letter", MISTAKES)
@pytest.mark.usefixtures("x64")
def test_mixers_equal_their_equations(letter):
    written_out.check(letter)


@pytest.mark.weekly
@pytest.mark.parametrize(("letter", "module", "line", "instead"), ALL)
@pytest.mark.usefixtures("x64")
def test_a_planted_mistake_is_found(letter, module, line, instead):
    assert_found(functools.partial(written_out.check, letter), module, line, instead)
