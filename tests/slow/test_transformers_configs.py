"""config.json and tensor names against the installed transformers: its classes, and what they save.

The fast tests compare with a table that `make_defaults.py` wrote; this one says whether it still
holds.
"""

import json
import warnings

import numpy as np
import pytest
from pretrained.full_configs import random_parts
from pretrained.make_defaults import CLASSES, FILE, installed
from pretrained.parity.variants import layer_types

import hybrid
from hybrid import pretrained
from hybrid.data.tokenizers import BYTE_BOS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow


def test_the_table_of_defaults_is_that_of_the_installed_classes():
    assert json.loads(FILE.read_text()) == installed()


@pytest.mark.parametrize("kind", CLASSES)
def test_a_config_with_keys_left_out_is_read_as_transformers_writes_it_out(kind, tmp_path):
    for keys in random_parts(kind, 25, seed=1):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **keys}))
        ours = pretrained.model_values(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(transformers, CLASSES[kind])(**keys).save_pretrained(tmp_path)
        theirs = pretrained.model_values(tmp_path)
        assert _heads_resolved(ours) == _heads_resolved(theirs)


def _heads_resolved(values):
    """Global heads as numbers: one form of the file repeats what another has "as local"."""
    as_local = {"num_global_kv_heads": "num_kv_heads", "global_head_dim": "head_dim"}
    own = {name: values.get(name) or values[local] for name, local in as_local.items()}
    return {"layer_embedding_dim": 0} | values | own


# --- Layouts of names ------------------------------------------------------------------------

_SHARED = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
    "layer_types": layer_types("LG", 4),
    "pad_token_id": 0,
}
_GEMMA_4 = {"global_head_dim": 16, "final_logit_softcapping": 30.0}
_TEXT = {
    "Gemma2": ("Gemma2Config", {}),
    "Gemma3Text": ("Gemma3TextConfig", {}),
    "Gemma4Text": (
        "Gemma4TextConfig",
        _GEMMA_4 | {"vocab_size_per_layer_input": 96, "hidden_size_per_layer_input": 8},
    ),
    "Gemma4UnifiedText": ("Gemma4UnifiedTextConfig", _GEMMA_4),
}
_LAYER = {"num_hidden_layers": 1, "num_attention_heads": 1}
_SMALL = _LAYER | {"hidden_size": 8, "intermediate_size": 8}
_VISION = _SMALL | {"num_key_value_heads": 1, "head_dim": 8, "position_embedding_size": 4}
_TOWERS = {
    "Gemma3": {"vision_config": _SMALL | {"image_size": 16, "patch_size": 4}},
    "Gemma4": {
        "vision_config": _VISION | {"patch_size": 2},
        "audio_config": {
            **_LAYER,
            "hidden_size": 8,
            "subsampling_conv_channels": [4, 4],
            "output_proj_dims": 8,
        },
    },
    "Gemma4Unified": {
        "vision_config": {"patch_size": 2, "mm_embed_dim": 8, "mm_posemb_size": 4},
        "audio_config": {"audio_embed_dim": 8},
    },
}
_LAYOUTS = {
    "Gemma2Model": "Gemma2",
    "Gemma2ForCausalLM": "Gemma2",
    "Gemma3TextModel": "Gemma3Text",
    "Gemma3ForCausalLM": "Gemma3Text",
    "Gemma3Model": "Gemma3",
    "Gemma3ForConditionalGeneration": "Gemma3",
    "Gemma4TextModel": "Gemma4Text",
    "Gemma4ForCausalLM": "Gemma4Text",
    "Gemma4Model": "Gemma4",
    "Gemma4ForConditionalGeneration": "Gemma4",
    "Gemma4UnifiedTextModel": "Gemma4UnifiedText",
    "Gemma4UnifiedForCausalLM": "Gemma4UnifiedText",
    "Gemma4UnifiedModel": "Gemma4Unified",
    "Gemma4UnifiedForConditionalGeneration": "Gemma4Unified",
}


def tiny(name):
    """A tiny model of a class of transformers, its norms and scalars not at their start."""
    family = _LAYOUTS[name]
    text_name, keys = _TEXT[family if family in _TEXT else f"{family}Text"]
    config = getattr(transformers, text_name)(**_SHARED, **keys)
    if family in _TOWERS:
        towers = _TOWERS[family]
        config = getattr(transformers, f"{family}Config")(text_config=config.to_dict(), **towers)
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model


@pytest.mark.parametrize("name", _LAYOUTS)
def test_every_layout_of_the_family_is_read_and_its_towers_left_out(name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(1, 96, (2, 20))
    found = hybrid.from_pretrained(tmp_path)
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        if name.endswith("Model"):  # no head: compared by one made of its embedding
            wanted = model(input_ids=ids, use_cache=False).last_hidden_state
            wanted = wanted @ model.get_input_embeddings().weight.T
            cap = found.config.logit_softcap
            wanted = cap * torch.tanh(wanted / cap) if cap else wanted
        else:
            wanted = model(input_ids=ids, use_cache=False).logits
    np.testing.assert_allclose(found(tokens), wanted.numpy(), rtol=0, atol=1e-3)


def test_a_tokenizer_of_bytes_adds_bos_there_as_the_run_did(tmp_path):
    from hybrid.pretrained.tokenizer import write_tokenizer

    for adds_bos in (True, False):
        folder = tmp_path / str(adds_bos)
        folder.mkdir()
        write_tokenizer("byte", folder, adds_bos=adds_bos)
        (folder / "config.json").write_text('{"model_type": "gemma3_text"}')
        there = transformers.AutoTokenizer.from_pretrained(folder)
        assert there("def ").input_ids == [BYTE_BOS] * adds_bos + list(b"def ")
