"""Our decoder equals transformers': golden results of tiny models of the whole family.

`make_golden.py` ran transformers once and kept what it computed; the weights follow from the
tensors' names (`keyed.py`), so each test starts where a user does, at a folder on disk. In float64
both programs compute the same but for the order of sums, so the tolerances below are far under
what any mistake costs: the smallest of some fifty planted ones moved a logit by 4e-3.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from pretrained.parity import keyed, ours
from pretrained.parity.variants import POSITIONS, VARIANTS

# Absolute; logits reach 6 to 10. Measured: 5e-5 (rounding grows with depth) and 2e-13.
LOGITS = {"float32": 1e-3, "float64": 1e-10}
# Relative to the leaf's norm. Measured: 1e-14, and 1e-9 for the last layer's scalar, whose
# gradient all but cancels, since a norm follows.
GRADIENT = 1e-7
SHARING = ("kv_sharing", "kv_sharing_inside_period", "multimodal", "everything")
ALL_READINGS = ("kv_sharing_inside_period", "experts")
READINGS = {
    f"remat {remat}, {'loop' if unroll else 'scan'}": {"remat": remat, "unroll": unroll}
    for remat, unroll in itertools.product(("none", "dots", "full"), (False, True))
}
PLAIN = READINGS["remat none, scan"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a variant, as transformers saved it."""
    root = tmp_path_factory.mktemp("folders")

    def of(name):
        path = root / name
        if not path.exists():
            golden = ours.golden(name)
            ours.write_folder(path, golden.config, golden.weights(name))
        return path

    return of


@pytest.mark.parametrize("name", VARIANTS)
def test_float32_logits_equal_transformers(name, folder):
    golden = ours.golden(name)
    config, params = ours.load(folder(name), "float32")
    logits, nll = ours.forward(config, params, ours.batch(golden.rows))
    assert logits.dtype == np.float32
    got, atol = np.asarray(logits)[:, POSITIONS], LOGITS["float32"]
    np.testing.assert_allclose(got, golden.logits32, rtol=0, atol=atol)
    np.testing.assert_allclose(nll, golden.nll, rtol=0, atol=atol)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", VARIANTS)
def test_float64_logits_equal_transformers(name, folder):
    golden = ours.golden(name)
    config, params = ours.load(folder(name), "float64")
    logits, nll = ours.forward(config, params, ours.batch(golden.rows))
    got, atol = np.asarray(logits)[:, POSITIONS], LOGITS["float64"]
    np.testing.assert_allclose(got, golden.logits, rtol=0, atol=atol)
    np.testing.assert_allclose(nll, golden.nll, rtol=0, atol=atol)


def gradient_errors(name, path, reading):
    """{a tensor's name: its gradient's error over its norm}, the file's names on both sides."""
    golden = ours.golden(name)
    config, params = ours.load(path, "float64")
    # transformers keeps layer scalars in a buffer; its gradient tells a wrong place all the same.
    scalar = "none" if config.layer_scalar == "none" else "trained"
    config = dataclasses.replace(config, layer_scalar=scalar, **reading)
    tree = ours.gradients(config, params, ours.batch(golden.rows))
    got = ours.by_file_name(path, config, tree)
    assert got.keys() == golden.gradients.keys()
    return {
        tensor: np.abs(keyed.prints(tensor, got[tensor]) - wanted).max() / wanted[0]
        for tensor, wanted in golden.gradients.items()
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_gradient_equals_transformers(name, folder):
    errors = gradient_errors(name, folder(name), PLAIN)
    assert not {tensor: error for tensor, error in errors.items() if error > GRADIENT}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reading", [r for r in READINGS if READINGS[r] is not PLAIN])
@pytest.mark.parametrize("name", ALL_READINGS)
def test_rematerialised_and_unrolled_gradients_equal_transformers(name, reading, folder):
    errors = gradient_errors(name, folder(name), READINGS[reading])
    assert not {tensor: error for tensor, error in errors.items() if error > GRADIENT}
