"""Keys of config.json that our model does not compute with: refused by name, or told.

Whatever transformers computes with is either done here too or refused, in each form and layout of
the file; what it does not compute with either is left out, with a line in the log.
"""

import contextlib
import json
import logging

import pytest
from pretrained.full_configs import FULL_CONFIGS

from hybrid import config as config_lib
from hybrid import pretrained
from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.pretrained.rope_in import FULL, SLIDING

WRAPPERS = {"gemma3_text": "gemma3", "gemma4_text": "gemma4"}
DEFAULT = {"rope_type": "default", "rope_theta": 1e6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LINEAR = {"rope_type": "linear", "factor": 4.0}
P_ROPE = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}


def write(folder, kind, keys, wrapper=None):
    values = {"model_type": kind, **keys}
    values = {"model_type": wrapper, "text_config": values} if wrapper else values
    (folder / "config.json").write_text(json.dumps(values))


def by_kind(local=None, wide=None):
    return {"rope_parameters": {SLIDING: local or DEFAULT, FULL: wide or DEFAULT}}


# The decoder's model_type, keys of its config, the key that the refusal names.
REFUSED = [
    ("gemma2", {"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling.type"),
    ("gemma2", {"rope_scaling": LINEAR}, "rope_scaling.rope_type"),
    ("gemma2", {"rope_scaling": YARN}, "rope_scaling.rope_type"),
    ("gemma2", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type"),
    ("gemma2", {"rope_scaling": [4.0]}, "rope_scaling must be an object"),
    ("gemma2", {"rope_parameters": LINEAR | {"rope_theta": 1e4}}, "rope_parameters.rope_type"),
    ("gemma2", {"rope_parameters": YARN | {"rope_theta": 1e4}}, "rope_parameters.rope_type"),
    ("gemma2", {"rope_parameters": DEFAULT | {"factor": 8.0}}, "rope_parameters.factor"),
    ("gemma2", by_kind(), f"rope_parameters.{SLIDING}"),
    ("gemma2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"is_causal": False}, "is_causal"),
    ("gemma2", {"sliding_window": None}, "sliding_window"),
    ("gemma2", {"per_layer_config": {"1": {"head_dim": 8}}}, "per_layer_config"),
    ("gemma3_text", {"rope_scaling": YARN}, "rope_scaling.rope_type"),
    ("gemma3_text", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling.type"),
    ("gemma3_text", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
    ("gemma3_text", {"rope_scaling": {"factor": 8.0}}, "rope_scaling.factor"),
    ("gemma3_text", by_kind(LINEAR), f"rope_parameters.{SLIDING}.rope_type"),
    ("gemma3_text", by_kind(wide=YARN), f"rope_parameters.{FULL}.rope_type"),
    ("gemma3_text", by_kind(wide=DEFAULT | {"factor": 8.0}), f"rope_parameters.{FULL}.factor"),
    (
        "gemma3_text",
        by_kind(wide=LINEAR | {"partial_rotary_factor": 0.5}),
        f"rope_parameters.{FULL}.partial_rotary_factor",
    ),
    ("gemma3_text", {"rope_parameters": DEFAULT}, "rope_parameters.rope_type"),
    ("gemma3_text", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3_text", {"use_bidirectional_attention": "vision"}, "use_bidirectional_attention"),
    ("gemma3_text", {"attention_bias": True}, "attention_bias"),
    ("gemma3_text", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation"),
    ("gemma4_text", {"rope_scaling": LINEAR}, "rope_scaling"),
    ("gemma4_text", by_kind(wide=LINEAR | {"rope_theta": 1e6}), f"rope_parameters.{FULL}.rope_t"),
    ("gemma4_text", by_kind(P_ROPE, P_ROPE), f"rope_parameters.{SLIDING}.rope_type"),
    ("gemma4_text", by_kind(wide=P_ROPE | {"beta_fast": 32}), f"rope_parameters.{FULL}.beta_fast"),
    ("gemma4_text", by_kind(wide=DEFAULT | {"factor": 8}), f"rope_parameters.{FULL}.factor"),
    ("gemma4_text", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ("gemma4_text", {"per_layer_config": {"29": {"sliding_window": 4}}}, "per_layer_config.29"),
    ("gemma4_text", {"per_layer_config": {"29": {"skip": ["mlp"]}}}, "per_layer_config.29"),
    ("gemma4_text", {"per_layer_config": {"99": {"head_dim": 8}}}, "per_layer_config.99"),
    (
        "gemma4_text",
        {"per_layer_config": {"0": {"head_dim": 8}}},
        "per_layer_config: layers of one",
    ),
]


@pytest.mark.parametrize(("kind", "keys", "named"), REFUSED)
def test_a_key_that_changes_the_computation_is_refused_by_name(kind, keys, named, tmp_path):
    for wrapper in {None, WRAPPERS.get(kind)}:
        write(tmp_path, kind, keys, wrapper)
        with pytest.raises(ConfigError) as refused:
            pretrained.model_values(tmp_path)
        assert refused.value.problem.startswith(f"{tmp_path / 'config.json'}: {named}")


def test_what_changes_nothing_is_accepted(tmp_path):
    neutral = DEFAULT | {"factor": 1.0, "partial_rotary_factor": 1.0, "attention_factor": None}
    for kind, keys in {
        "gemma2": {"rope_scaling": None, "rope_parameters": neutral, "per_layer_config": {}},
        "gemma3_text": by_kind(neutral, {"type": "linear", **LINEAR}) | {"is_causal": True},
        "gemma4_text": by_kind(wide=P_ROPE | {"factor": 2.0}) | {"is_causal": None},
    }.items():
        write(tmp_path, kind, keys)
        pretrained.model_values(tmp_path)


def test_keys_of_the_file_around_the_decoder_count_too(tmp_path):
    for keys, named in (
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"text_config": {"quantization_config": []}}, "quantization_config"),
        ({"text_config": {"model_type": "gemma2"}}, "text_config.model_type"),
        ({"text_config": None}, "text_config must be an object"),
    ):
        values = {"model_type": "gemma3", "text_config": {}, **keys}
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ConfigError, match=named):
            pretrained.model_values(tmp_path)


TOLD = [
    ("gemma3_text", None, {"attn_logit_softcapping": 50.0}, "attention_softcap"),
    ("gemma3_text", "gemma3", {"final_logit_softcapping": 30.0}, "logit_softcap"),
    ("gemma4_text", None, {"attn_logit_softcapping": 50.0}, "attention_softcap"),
    ("gemma2", None, {"sliding_window_pattern": 6}, ""),
    ("gemma4_unified_text", None, {"enable_moe_block": True, "num_experts": 4}, "num_experts"),
    ("gemma2", None, {"attention_dropout": 0.1}, ""),
]


@pytest.mark.parametrize(("kind", "wrapper", "keys", "ours"), TOLD)
def test_a_key_that_transformers_computes_without_is_told_once(
    kind, wrapper, keys, ours, tmp_path, caplog, monkeypatch
):
    # A command that ran before has left a handler for a stream that is closed now.
    monkeypatch.setattr(logging.getLogger("hybrid"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("hybrid"), "propagate", True)
    write(tmp_path, kind, {}, wrapper)
    plain = pretrained.model_values(tmp_path)
    write(tmp_path, kind, keys, wrapper)
    with caplog.at_level(logging.WARNING, "hybrid"):
        for _ in range(2):
            assert pretrained.model_values(tmp_path) == plain
    (line,) = caplog.messages
    assert next(iter(keys)) in line
    assert not plain.get(ours)


def test_a_softcap_that_transformers_computes_with_is_ours_too(tmp_path):
    write(tmp_path, "gemma3_text", {"final_logit_softcapping": 30.0})
    assert pretrained.model_values(tmp_path)["logit_softcap"] == 30.0
    write(tmp_path, "gemma4_text", {"final_logit_softcapping": 30.0}, "gemma4")
    assert pretrained.model_values(tmp_path)["logit_softcap"] == 30.0


STRANGE = (None, "x", -1, 0, 0.5, True, 10**30, float("nan"))
STRANGE += ([], [1], ["x"], {}, {"0": 1}, {"x": {}})


@pytest.mark.parametrize("kind", FULL_CONFIGS)
def test_a_value_of_any_kind_is_read_or_refused(kind, tmp_path):
    full = FULL_CONFIGS[kind]
    more = ("rope_scaling", "rope_theta", "rope_local_base_freq", "per_layer_config", "text_config")
    changes = [{name: value} for name in (*full, *more) for value in STRANGE]
    ropes = full["rope_parameters"]
    for value in STRANGE:
        changes += [{"rope_parameters": ropes | {name: value}} for name in ropes]
        inner = ropes.get(FULL, {})
        changes += [{"rope_parameters": ropes | {FULL: inner | {name: value}}} for name in inner]
    for change in changes:
        write(tmp_path, kind, full | change)
        with contextlib.suppress(ConfigError):
            config_lib.build(ModelConfig, pretrained.model_values(tmp_path))
            pretrained.read_settings(tmp_path)
