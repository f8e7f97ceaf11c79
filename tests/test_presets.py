"""The published models as pages: parameters counted from abstract shapes, patterns and caches."""

import pytest

from hybrid import experiment, model, plan
from hybrid.config import ConfigError

NUM_PARAMS = {
    "gemma4.py:e2b": 4_628_569_379,
    "gemma4.py:e4b": 7_463_013_418,
    "gemma4.py:12b": 11_907_350_320,
    "gemma4.py:26b_a4b": 25_233_141_790,
    "gemma4.py:31b": 30_697_345_340,
    "gemma3.py:270m": 268_098_176,
    "gemma3.py:1b": 999_885_952,
    "gemma3.py:4b": 3_880_263_168,
    "gemma3.py:12b": 11_766_034_176,
    "gemma3.py:27b": 27_009_346_304,
    "gemma2.py:2b": 2_614_341_888,
    "gemma2.py:9b": 9_241_705_984,
    "gemma2.py:27b": 27_227_128_320,
}


@pytest.mark.parametrize("page", NUM_PARAMS)
def test_a_preset_has_the_published_number_of_parameters(page):
    report = plan(f"configs/{page}")
    assert report.num_params == NUM_PARAMS[page]
    assert sum(report.params_by_part.values()) == report.num_params


def test_only_the_experts_that_a_token_meets_are_active():
    assert plan("configs/gemma4.py:26b_a4b").num_active_params == 3_822_530_590
    assert plan("configs/gemma4.py:e2b").num_active_params == NUM_PARAMS["gemma4.py:e2b"]


def test_tables_of_per_layer_embeddings_are_a_part_of_their_own():
    report = plan("configs/gemma4.py:e2b")
    tables = 262_144 * 35 * 256
    assert report.params_by_part["layer embeddings"] == tables + 3 * 35 * 1536 * 256
    assert report.num_params - tables == 2_279_759_139


@pytest.mark.parametrize(("size", "last"), [("1b", "L"), ("4b", "L"), ("27b", "L"), ("12b", "G")])
def test_some_gemma_3_models_end_local(size, last):
    config = experiment.load(f"configs/gemma3.py:{size}").model
    assert model.layer_plan(config).letters[-1] == last


@pytest.mark.parametrize(
    ("size", "context", "gib"),
    [
        ("e2b", 131_072, 0.756),
        ("e4b", 131_072, 2.020),
        ("12b", 262_144, 2.312),
        ("26b_a4b", 262_144, 2.695),
        ("31b", 262_144, 10.78),
    ],
)
def test_caches_at_full_context(size, context, gib):
    total = plan(f"configs/gemma4.py:{size}", context=context).kv_cache_bytes["total"]
    assert total / 2**30 == pytest.approx(gib, abs=0.005)


def test_an_unknown_size_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"--config: has no variant '3b'"):
        experiment.load("configs/gemma4.py:3b")
