"""Our decoder equals transformers': golden results of tiny models of the whole family.

`make_golden.py` ran transformers once and kept what it computed; the weights follow from the
tensors' names (`keyed.py`), so each test starts where a user does, at a folder on disk. In float64
both programs compute the same but for the order of sums, so the tolerances below are far under
what any mistake costs: the smallest of some fifty planted ones moved a logit by 4e-3.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from pretrained.parity import keyed, ours
from pretrained.parity.variants import POSITIONS, VARIANTS
from safetensors.numpy import load_file

from hybrid import model, pretrained
from hybrid.loading import api

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
    config = dataclasses.replace(ours.with_scalars(config), **reading)
    tree = ours.gradients(config, params, ours.batch(golden.rows))
    got = ours.by_file_name(name, config, tree)
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


OTHERS = [
    pytest.param(reading, marks=[] if reading == "remat full, scan" else pytest.mark.slow)
    for reading in READINGS
    if READINGS[reading] is not PLAIN
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reading", OTHERS)
@pytest.mark.parametrize("name", ALL_READINGS)
def test_rematerialised_and_unrolled_gradients_equal_transformers(name, reading, folder):
    errors = gradient_errors(name, folder(name), READINGS[reading])
    assert not {tensor: error for tensor, error in errors.items() if error > GRADIENT}


def test_donors_gradients_are_among_those_compared():
    """Logits alone do not see whether readers' gradients reach the keys and values they read."""
    for name in SHARING:
        config = ours.model_config(name)
        layers = list(model.layer_plan(config).layers())
        donors = [layer for layer, spec in enumerate(layers) if spec.mixer.donates]
        assert len(donors) == 2
        for layer in donors:
            tensors = {f"layers.{layer}.self_attn.{t}_proj.weight" for t in _kv(layers[layer])}
            compared = ours.golden(name).gradients
            assert {t for t in tensors if any(full.endswith(t) for full in compared)} == tensors


def _kv(spec):
    return "k" if spec.mixer.unified_kv else "kv"


@pytest.mark.parametrize("name", VARIANTS)
def test_what_was_read_is_written_back_bit_by_bit(name, folder, tmp_path):
    found = api.from_pretrained(folder(name))
    pretrained.write_folder(found.params, found.config, tmp_path / "back", str(folder(name)))
    written, golden = load_file(tmp_path / "back" / "model.safetensors"), ours.golden(name)
    read = {tensor.replace("language_model.", ""): w for tensor, w in golden.weights(name).items()}
    towers = {t for t in read if not t.startswith(("model.layers", "model.embed_tokens"))}
    assert read.keys() - towers <= written.keys()
    for tensor, values in written.items():
        np.testing.assert_array_equal(values, read[tensor], err_msg=tensor)
    again = api.from_pretrained(tmp_path / "back")
    assert again.config == found.config
