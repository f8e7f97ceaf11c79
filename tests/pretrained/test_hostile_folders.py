"""Broken and hostile folders: each refused in one line that names what is wrong, nothing made."""

import json
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
from pretrained import tiny_folder
from safetensors.numpy import save_file

from hybrid.config import ConfigError
from hybrid.evaluation.__main__ import main as evaluate
from hybrid.loading import api

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sound folder of one file, and one of several."""
    root = tmp_path_factory.mktemp("good")
    tiny_folder.write(root / "one")
    tiny_folder.write(root / "several", most_bytes=4000)
    return root


def config(**keys):
    return lambda folder: tiny_folder.change_config(folder, **keys)


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def tensors(change):
    return lambda folder: tiny_folder.change_tensors(folder, change)


def without(name):
    return tensors(lambda all_: {n: v for n, v in all_.items() if n != name})


def with_(name, value):
    return tensors(lambda all_: all_ | {name: value})


def in_index(change):
    def apply(folder):
        path = folder / INDEX
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return apply


def entry(file):
    """The index says that the norm stands in `file`."""
    return in_index(lambda values: values["weight_map"].update({"model.norm.weight": file}))


def header(change):
    """Rewrites the JSON header of the file."""

    def apply(folder):
        data = (folder / SINGLE).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        values = change(json.loads(data[8 : 8 + size]))
        text_ = json.dumps(values).encode()
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(text_)) + text_ + data[8 + size :])

    return apply


def only_pickles(folder):
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def twice(folder):
    """A second file has a tensor that another has too, and the index knows both files."""
    values = json.loads((folder / INDEX).read_text())
    save_file({"model.norm.weight": np.zeros(8, np.float32)}, folder / "again.safetensors")
    values["weight_map"]["extra"] = "again.safetensors"
    (folder / INDEX).write_text(json.dumps(values))


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
K_PROJ = "model.layers.0.self_attn.k_proj.weight"
EIGHT = np.zeros(8, np.float32)

# name: (which folder, how it is broken, what the line says)
CASES = {
    "no config": ("one", lambda f: (f / "config.json").unlink(), r"holds no config.json"),
    "a broken config": ("one", text("config.json", b"{"), "config.json is broken"),
    "a config that is a list": ("one", text("config.json", b"[1]"), "holds no object"),
    "another architecture": ("one", config(model_type="llama"), "model_type.*got llama"),
    "no model_type": ("one", config(model_type=None), "model_type is not served"),
    "quantised by its config": (
        "one",
        config(quantization_config={"quant_method": "gptq"}),
        "quantization_config: quantized weights are not read, got gptq",
    ),
    "text_config that is a list": ("one", config(text_config=[]), "text_config must be an object"),
    "a width that is text": ("one", config(hidden_size="8"), "hidden_size must be a whole number"),
    "no layers": ("one", config(num_hidden_layers=0), "num_hidden_layers must be"),
    "heads that do not divide": ("one", config(num_key_value_heads=3), "num_kv_heads"),
    "too few layer types": ("one", config(layer_types=["full_attention"]), "must name 4 layers"),
    "an unknown layer type": (
        "one",
        config(layer_types=["chunked_attention"] * 4),
        "unknown kind, got chunked_attention",
    ),
    "unequal layers of a kind": (
        "one",
        config(per_layer_config={"1": {"head_dim": 8}, "3": {"head_dim": 16}}),
        "layers of one kind must be alike",
    ),
    "another rotary encoding": (
        "one",
        config(rope_parameters={"full_attention": {"rope_type": "yarn", "rope_theta": 1e6}}),
        "rope_type is not served, got yarn",
    ),
    "biases": ("one", config(attention_bias=True), "attention_bias is not served"),
    "an untied head": ("one", config(tie_word_embeddings=False), "tie_word_embeddings"),
    "another activation": ("one", config(hidden_activation="silu"), "hidden_activation.*silu"),
    "not causal": ("one", config(use_bidirectional_attention="all"), "only causal text"),
    "pickles alone": ("one", only_pickles, "pickled weights alone.*pytorch_model.bin"),
    "no tensors": ("one", lambda f: (f / SINGLE).unlink(), "holds neither"),
    "an empty file": ("one", text(SINGLE, b""), "model.safetensors can't be read"),
    "a file cut short": (
        "one",
        lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:-10]),
        "model.safetensors can't be read",
    ),
    "a header longer than the file": (
        "one",
        text(SINGLE, struct.pack("<Q", 1 << 40) + b"{}"),
        "model.safetensors can't be read",
    ),
    "a header that is no JSON": (
        "one",
        text(SINGLE, struct.pack("<Q", 4) + b"????"),
        "model.safetensors can't be read",
    ),
    "overlapping tensors": (
        "one",
        header(lambda h: h | {NORM: h[NORM] | {"data_offsets": [0, 32]}}),
        "model.safetensors can't be read",
    ),
    "offsets beyond the file": (
        "one",
        header(lambda h: h | {NORM: h[NORM] | {"data_offsets": [1 << 30, (1 << 30) + 32]}}),
        "model.safetensors can't be read",
    ),
    "a missing tensor": ("one", without(K_PROJ), rf"lacks tensor: {K_PROJ}"),
    "an unknown tensor": ("one", with_("model.layers.9.x", EIGHT), "unknown tensor: model.lay"),
    "a misshapen tensor": (
        "one",
        with_(NORM, np.zeros(9, np.float32)),
        rf"misshapen tensor: {NORM} \[9\] instead of \[8\]",
    ),
    "an int8 tensor": ("one", with_(NORM, np.zeros(8, np.int8)), f"{NORM} is quantised.*I8"),
    "an fp8 tensor": (
        "one",
        with_(NORM, np.zeros(8, ml_dtypes.float8_e4m3fn)),
        f"{NORM} is quantised",
    ),
    "a broken index": ("several", text(INDEX, b"{"), f"{INDEX} is broken"),
    "an index without files": ("several", text(INDEX, b"{}"), f"{INDEX} is broken"),
    "an index that climbs": ("several", entry("../other.safetensors"), "outside the folder"),
    "an absolute entry": ("several", entry("/etc/passwd"), "outside the folder for model.norm"),
    "a nested entry": ("several", entry("sub/x.safetensors"), "outside the folder"),
    "a backslash": ("several", entry("..\\x.safetensors"), "outside the folder"),
    "an entry that is a number": ("several", entry(7), "outside the folder"),
    "an entry without a file": ("several", entry("gone.safetensors"), "isn't there.*gone"),
    "a file without its tensor": (
        "several",
        in_index(lambda v: v["weight_map"].update({NORM: v["weight_map"][EMBEDDING]})),
        "lacks a tensor of",
    ),
    "a tensor that the index forgets": (
        "several",
        in_index(lambda v: v["weight_map"].pop(NORM)),
        f"does not name, got {NORM}",
    ),
    "a tensor in two files": ("several", twice, f"{NORM} stands in two files"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_folder_is_refused_by_name(case, good, tmp_path):
    which, damage, line = CASES[case]
    folder = tmp_path / "folder"
    shutil.copytree(good / which, folder)
    damage(folder)
    with pytest.raises(ConfigError, match=line) as refused:
        api.from_pretrained(folder)
    assert "\n" not in str(refused.value)


def test_there_are_more_than_twenty_kinds_and_the_sound_folders_load(good):
    assert len(CASES) >= 20
    for which in ("one", "several"):
        assert api.from_pretrained(good / which).config.num_layers == 4


@pytest.mark.parametrize("case", ["a missing tensor", "an index that climbs", "a file cut short"])
def test_the_command_says_one_line_and_makes_nothing(case, good, tmp_path, capsys):
    which, damage, line = CASES[case]
    folder = tmp_path / "folder"
    shutil.copytree(good / which, folder)
    damage(folder)
    words = ["--config.eval.max_tokens=10", "--config.data.tokenizer=byte"]
    output = tmp_path / "result.json"
    assert evaluate([f"--pretrained={folder}", f"--output={output}", *words]) == 2
    said = capsys.readouterr()
    (error,) = [text for text in said.err.splitlines() if text.startswith("error: ")]
    assert line.split(".*")[0].split("\\")[0] in error
    assert error == said.err.splitlines()[-1]
    assert not output.exists()


def test_folders_that_are_not_there_or_of_the_other_kind(tmp_path, capsys):
    assert evaluate([f"--pretrained={tmp_path / 'nowhere'}"]) == 2
    assert capsys.readouterr().err.startswith("error: --pretrained: no such folder")
    assert evaluate([f"--pretrained={tmp_path}", f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("error: --pretrained: stands in place of --workdir")
