"""Greedy continuations equal transformers' `generate` on tiny models of the family."""

import numpy as np
import pytest
from pretrained.parity import ours
from pretrained.parity.variants import VARIANTS, token_rows

import hybrid
from hybrid.inference.config import InferenceConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peer = pytest.importorskip("pretrained.parity.peer")

pytestmark = pytest.mark.slow
SEED, NEW = 2, 24


def continued_there(folder, tokens):
    """transformers' greedy tokens, each row by itself."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    rows = []
    for row in tokens:
        ids = torch.from_numpy(row[None]).long()
        mask = torch.ones_like(ids)
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
            )
        rows.append(out[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_continuations_equal(name, tmp_path):
    """Past the window, whole and with a cache of another form, chunk and program."""
    peer.save(name, SEED, tmp_path)
    ours.write_tokenizer(tmp_path)
    tokens = token_rows(SEED)[:, :-1]
    wanted = continued_there(tmp_path, tokens)
    model = hybrid.from_pretrained(tmp_path)
    np.testing.assert_array_equal(hybrid.generate(model, tokens, max_new_tokens=NEW), wanted)
    other = InferenceConfig(
        unified_cache="value_and_rotated", slack=2, prefill_chunk=5, layers="scan"
    )
    found = hybrid.generate(model, tokens, max_new_tokens=NEW, inference=other)
    np.testing.assert_array_equal(found, wanted)
