"""Every pair of letters in one pattern: scan is loop, decoding is the forward, runs resume."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.small_models import params_of, tokens_of
from model.mixer_contract import MODEL, check_resume, packed
from model.small_mixers import keys_of

from hybrid import experiment, model
from hybrid.inference.config import InferenceConfig
from hybrid.inference.session import Session
from hybrid.model.mixers import MIXERS

PAIRS = ["".join(pair) for pair in itertools.combinations(MIXERS, 2)]
QUICK = ("LM", "LR", "MR")
TIME, NUM_NEW = 9, 3


def pairs():
    """All pairs, those but a few marked weekly."""
    marks = {False: (pytest.mark.weekly,), True: ()}
    return [pytest.param(pair, marks=marks[pair in QUICK]) for pair in PAIRS]


def config_of(pair):
    """The pair twice with a global layer behind each, and one layer more."""
    keys = {"pattern": f"{pair}G", "num_layers": 6, "dtype": "float64"}
    return experiment.from_config({"model": MODEL | keys | keys_of(pair)}).model


@pytest.mark.parametrize("pair", pairs())
@pytest.mark.usefixtures("x64")
def test_scan_equals_loop(pair):
    def loss(config, params, batch):
        return model.loss_sums(config, params, batch).nll

    scanned = config_of(pair)
    results = [
        jax.jit(jax.value_and_grad(functools.partial(loss, config)))(params_of(config), packed())
        for config in (scanned, dataclasses.replace(scanned, unroll=True))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), *results)


@pytest.mark.parametrize("pair", pairs())
@pytest.mark.usefixtures("x64")
def test_decoding_equals_the_forward(pair):
    config = config_of(pair)
    prompt = tokens_of(config, time=TIME)
    session = Session(config, params_of(config), InferenceConfig())
    cache, last = session.prefill(session.empty(len(prompt), TIME + NUM_NEW), prompt)
    decoded = session.decode(cache, jnp.copy(last), NUM_NEW)
    tokens = np.concatenate([prompt, np.asarray(decoded.tokens)[:, :NUM_NEW]], axis=1)
    logits = jax.jit(functools.partial(model.logits, config))(params_of(config), tokens)
    np.testing.assert_allclose(last, logits[:, TIME - 1], atol=1e-9)
    best = np.argmax(logits[:, TIME - 1 : -1], axis=-1)
    np.testing.assert_array_equal(best, tokens[:, TIME:])


@pytest.mark.weekly
@pytest.mark.parametrize("pair", PAIRS)
def test_it_trains_and_resumes_to_the_same_bits(pair, tmp_path):
    check_resume(tmp_path, pattern=f"{pair}G", num_layers=6, **keys_of(pair))
