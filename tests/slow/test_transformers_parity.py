"""The family against transformers itself: saved there and loaded here, and the way back.

Other weights than the golden files have, so those cannot have grown around one seed.
"""

import json

import numpy as np
import pytest
from pretrained.parity import ours
from pretrained.parity.variants import VARIANTS, token_rows

from hybrid import experiment, pretrained
from hybrid.evaluation.target import evaluate_target, of_pretrained
from hybrid.loading import api
from hybrid.training import loop

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peer = pytest.importorskip("pretrained.parity.peer")

pytestmark = pytest.mark.slow
SEED = 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a variant, saved by transformers."""
    root = tmp_path_factory.mktemp("saved")

    def of(name):
        if not (root / name).exists():
            peer.save(name, SEED, root / name)
            ours.write_tokenizer(root / name)
        return root / name

    return of


@pytest.mark.parametrize("name", VARIANTS)
def test_float32_logits_equal(name, saved):
    rows = token_rows(SEED)
    wanted = peer.outputs(name, SEED, rows, "float32")
    model, params = ours.load(saved(name), "float32")
    logits, nll = ours.forward(model, params, ours.batch(rows))
    np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=1e-3)
    np.testing.assert_allclose(nll, wanted.nll, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", VARIANTS)
def test_float64_logits_and_every_gradient_equal(name, saved):
    rows = token_rows(SEED)
    wanted = peer.outputs(name, SEED, rows, "float64")
    model, params = ours.load(saved(name), "float64")
    logits, nll = ours.forward(model, params, ours.batch(rows))
    np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=1e-9)
    np.testing.assert_allclose(nll, wanted.nll, rtol=0, atol=1e-9)
    trained = ours.with_scalars(model)
    gradients = ours.by_file_name(name, trained, ours.gradients(trained, params, ours.batch(rows)))
    assert gradients.keys() == wanted.gradients.keys()
    for tensor, gradient in wanted.gradients.items():
        error = np.linalg.norm(gradients[tensor] - gradient) / np.linalg.norm(gradient)
        assert error < 1e-6, tensor


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_written_here_loads_there_with_the_same_logits(name, saved, tmp_path):
    rows = token_rows(SEED)
    wanted = peer.outputs(name, SEED, rows, "float32")
    found = api.from_pretrained(saved(name))
    pretrained.write_folder(found.params, found.config, tmp_path / "ours", str(saved(name)))
    there, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits = there(torch.from_numpy(rows[:, :-1]).long(), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eval_gives_the_loss_of_transformers_token_by_token(dtype, saved, tmp_path):
    """Windows of 47 inputs, each beginning with BOS, over a text of the variant's vocabulary."""
    name = "kv_sharing"
    folder = saved(name)
    (tmp_path / "text.txt").write_text("".join(chr(97 + i * i % 23) for i in range(300)))
    overrides = {
        "data.source": "text",
        "data.paths": str(tmp_path / "text.txt"),
        "data.cache_dir": str(tmp_path / "cache"),
        "eval.context_length": "47",
        "model.dtype": dtype,
    }
    result = evaluate_target(of_pretrained(str(folder), None, overrides))
    wanted = peer_nll(name, folder, (tmp_path / "text.txt").read_text(), dtype)
    assert len(result.per_token) == len(wanted) == 301
    tolerance = {"float32": 1e-3, "float64": 1e-5}[dtype]
    np.testing.assert_allclose(result.per_token, wanted, rtol=0, atol=tolerance)
    assert abs(result.loss - wanted.mean()) < 1e-5


def peer_nll(name, folder, text, dtype, inputs=47):
    """transformers' nats of each token: windows of BOS and text, the boundary token scored once."""
    from tokenizers import Tokenizer

    tokens = [2, *Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids, 1]
    starts = range(0, len(tokens) - 2, inputs - 1)
    windows = [[2, *tokens[start + 1 : start + 1 + inputs]] for start in starts]
    with peer.wide(dtype), torch.no_grad():
        model = peer.build(VARIANTS[name], SEED, dtype)
        nll = [_nll(model, torch.tensor([window])) for window in windows]
    return np.concatenate([nll[0], *(later[1:] for later in nll[1:])])


def _nll(model, row):
    logits = model(input_ids=row[:, :-1], use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none").numpy()


@pytest.mark.parametrize("variant", ["whole", "lora"])
@pytest.mark.parametrize("name", ["kv_sharing", "experts"])
def test_a_tuned_model_is_better_and_its_export_equals_it_there(name, variant, saved, tmp_path):
    (tmp_path / "text.txt").write_text("".join(chr(97 + i * i % 23) for i in range(4000)))
    keys = {
        "init_from": str(saved(name)),
        "data.source": "text",
        "data.paths": str(tmp_path / "text.txt"),
        "data.eval_paths": str(tmp_path / "text.txt"),
        "data.cache_dir": str(tmp_path / "cache"),
        "training.num_steps": "30",
        "training.context_length": "47",
        "training.peak_flops": "-1",
        "optimizer.learning_rate": "1e-2",
        "eval.every_steps": "10",
        "eval.max_tokens": "400",
    }
    run = tmp_path / "run"
    loop.run(experiment.load(f"configs/finetune.py:{variant}", keys), run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert losses[-1] < rows[0]["loss"] - 1
    tuned = api.load(run)
    api.save_pretrained(tuned, tmp_path / "exported")
    there = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", attn_implementation="eager"
    )
    tokens = token_rows(SEED)[:, :-1]
    with torch.no_grad():
        wanted = there(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
    np.testing.assert_allclose(tuned(tokens), wanted, rtol=0, atol=1e-3)
