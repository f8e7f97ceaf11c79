"""A key that is left out means what transformers' classes mean, whichever keys are left out."""

import json

import pytest
from pretrained.full_configs import FULL_CONFIGS, random_parts
from pretrained.make_defaults import FILE

from hybrid import pretrained
from hybrid.model.config import ModelConfig
from hybrid.pretrained.defaults import DEFAULTS
from hybrid.pretrained.fields import WRAPPED

FROZEN = json.loads(FILE.read_text())
WRAPPERS = {inner: outer for outer, inner in WRAPPED.items()}


def values_of(folder, kind, keys, wrapper=None):
    """The model of a file with these keys, at the top or under `text_config`."""
    inner = {"model_type": kind, **keys}
    outer = {"model_type": wrapper, "text_config": inner, "vision_config": {}} if wrapper else inner
    (folder / "config.json").write_text(json.dumps(outer))
    values = pretrained.model_values(folder)
    ModelConfig(**values)
    return values


def test_the_table_is_that_of_transformers():
    assert FROZEN == DEFAULTS
    assert all(FULL_CONFIGS[kind].keys() >= FROZEN[kind].keys() for kind in FROZEN)


@pytest.mark.parametrize("kind", FROZEN)
def test_a_config_with_any_keys_left_out_is_the_one_with_defaults_written_out(kind, tmp_path):
    wrappers = [None, WRAPPERS[kind]] if kind in WRAPPERS else [None]
    for keys in random_parts(kind, 60):
        for wrapper in wrappers:
            written_out = values_of(tmp_path, kind, FROZEN[kind] | keys, wrapper)
            assert values_of(tmp_path, kind, keys, wrapper) == written_out


@pytest.mark.parametrize("kind", FROZEN)
def test_no_key_of_a_full_config_stays_at_its_default(kind, tmp_path):
    """So that a default in place of a key that is there would show."""
    full, empty = values_of(tmp_path, kind, FULL_CONFIGS[kind]), values_of(tmp_path, kind, {})
    fixed = {"norm_offset", "layer_scalar", "v_norm", "qk_norm", "attention_softcap", "last_layer"}
    fixed |= {"global_rope_fraction", "global_rope_factor"}
    assert not [name for name in empty.keys() - fixed if full[name] == empty[name]]


def test_gemma_3_4b_and_12b_as_published(tmp_path):
    keys = {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    values = values_of(tmp_path, "gemma3_text", keys, "gemma3")
    heads = ("num_heads", "num_kv_heads", "head_dim", "vocab_size")
    assert [values[name] for name in heads] == [8, 4, 256, 262_208]
    assert (values["pattern"], values["global_rope_factor"]) == ("LLLLLG", 8.0)
    more = {"num_attention_heads": 16, "num_key_value_heads": 8}
    values = values_of(tmp_path, "gemma3_text", keys | more, "gemma3")
    assert [values[name] for name in heads] == [16, 8, 256, 262_208]
