"""Mamba-2 and the RG-LRU equal their equations; every planted mistake is found by the same check.

A mistake is a line of the source replaced: (what is wrong, module, line, in its place).
"""
# ruff: noqa: E501 - a mistake a line

import importlib
import pathlib
import sys
import types

import pytest
from model.mixers import written_out

SSD, LRU = "hybrid.ops.state_space", "hybrid.ops.linear_recurrence"
MAMBA, GRIFFIN = "hybrid.model.mixers.mamba2", "hybrid.model.mixers.rg_lru"
CONVOLUTION, STATE = "hybrid.ops.short_convolution", "hybrid.model.mixers.recurrent"

MISTAKES = {
    "M": [
        ("decay grows", MAMBA, "=-jnp.exp(self.a_log", "=jnp.exp(self.a_log"),
        ("Δ missing", MAMBA, "(values * dt[..., None])", "values"),
        ("skip missing", MAMBA, "y + self.skip", "y + 0 * self.skip"),
        ("skip of Δ·x", MAMBA, "None] * values, state", "None] * inputs.x, state"),
        ("gate without silu", MAMBA, "y * jax.nn.silu(", "y * ("),
        ("norm before gate", MAMBA, "y = y * jax.nn.silu(", "y = self._normed(_flat(y)).reshape(y.shape) * jax.nn.silu("),
        ("one norm for all groups", MAMBA, "num_groups, -1)\n        unit", "num_groups * 0 + 1, -1)\n        unit"),
        ("padding counts", MAMBA, "jnp.where(tokens.is_real[..., None], dt, 0)", "dt"),
        ("B and C exchanged", MAMBA, "write, read = jnp", "read, write = jnp"),
        ("state in bfloat16", MAMBA, "(state, wide)", "(state, jnp.dtype(self.dtype))"),
        ("a token does not see itself", SSD, "jnp.tri(total.shape[-1]", "jnp.tri(total.shape[-1], k=-1"),
        ("documents see each other", SSD, "document[:, None, :]) &", "document[:, None, :] * 0 + document[:, :, None]) &"),
        ("the state outlives its document", SSD, "document == 0", "document >= 0"),
        ("a chunk's end off by one", SSD, "total[..., -1:] - total", "total[..., -2:-1] - total"),
    ],
    "R": [
        ("decay grows", GRIFFIN, "-SHARPNESS *", "SHARPNESS *"),
        ("gates exchanged", GRIFFIN, "return self.recurrence_gate, self.input_gate", "return self.input_gate, self.recurrence_gate"),
        ("a in place of a²", GRIFFIN, "-jnp.expm1(2 * log_a)", "-jnp.expm1(log_a)"),
        ("factor missing", GRIFFIN, "factor * i * x", "i * x"),
        ("factor at a first token", GRIFFIN, "jnp.where(is_first, 1, bounded", "jnp.where(is_first, 0.5, bounded"),
        ("the state outlives its document", GRIFFIN, "jnp.where(is_first, 0, jnp.exp(log_a))", "jnp.exp(log_a)"),
        ("padding decays", GRIFFIN, "jnp.exp(log_a)), 1)", "jnp.exp(log_a)), 0.5)"),
        ("padding counts", GRIFFIN, "jnp.where(is_real, factor * i * x, 0)", "factor * i * x"),
        ("gate without gelu", GRIFFIN, "jax.nn.gelu(self.gate_proj(x), approximate=True)", "self.gate_proj(x)"),
        ("state in bfloat16", GRIFFIN, "((self.width,), wide)", "((self.width,), narrow)"),
        ("one token late", LRU, "return h, h\n\n    tokens", "return h, h - token[1]\n\n    tokens"),
    ],
}  # fmt: skip
OF_BOTH = [
    ("convolution off by one", CONVOLUTION, "start = width - 1 - back", "start = width - back"),
    ("convolution across documents", CONVOLUTION, "positions >= back", "positions >= 0"),
    ("inputs kept off by one", CONVOLUTION, "jnp.arange(width - 1)[None]", "jnp.arange(1, width)[None]"),
    ("state not read", STATE, "if state is None:\n        shapes", "if True:\n        shapes"),
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
def test_a_planted_mistake_is_found(letter, module, line, instead, monkeypatch):
    plant(monkeypatch, module, line, instead)
    with pytest.raises(AssertionError):
        written_out.check(letter)


def plant(monkeypatch, name, line, instead):
    """Puts the functions of module `name` in their place wherever they are used, a line replaced.

    Classes stay what they are and get the methods.
    """
    module = importlib.import_module(name)
    source = pathlib.Path(module.__file__).read_text()
    assert source.count(line) == 1, f"{line!r} stands {source.count(line)} times in {name}"
    wrong = types.ModuleType(name)
    exec(compile(source.replace(line, instead), module.__file__, "exec"), wrong.__dict__)
    for attribute, right in list(vars(module).items()):
        if getattr(right, "__module__", None) != name:
            continue
        if isinstance(right, type):
            put_methods(monkeypatch, right, vars(wrong)[attribute], module.__file__)
            setattr(wrong, attribute, right)
        else:
            put_function(monkeypatch, right, attribute, vars(wrong)[attribute])


def put_methods(monkeypatch, right, wrong, path):
    """The methods of one class into another, those that stand in the file at `path`."""
    for name, method in vars(wrong).items():
        if getattr(getattr(method, "__code__", None), "co_filename", None) == path:
            monkeypatch.setattr(right, name, method)


def put_function(monkeypatch, right, name, wrong):
    """A function in the place of another in all modules that have it."""
    for key, user in list(sys.modules.items()):
        if key.startswith("hybrid.") and vars(user).get(name) is right:
            monkeypatch.setattr(user, name, wrong)
