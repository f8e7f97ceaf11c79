"""What a folder says besides the model survives a way through here: ids, positions, dtype, BOS."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from pretrained import tiny_folder
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import hybrid
from hybrid import pretrained
from hybrid.config import ConfigError
from hybrid.data.tokenizers import BYTE_BOS, BYTE_EOS
from hybrid.loading import api
from hybrid.origin import Origin, base_folder
from hybrid.pretrained.settings import GENERATION
from hybrid.pretrained.tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that names more than one id to stop at, a context of its own and its dtype."""
    folder = tiny_folder.write(tmp_path_factory.mktemp("settings") / "base")
    keys = {"eos_token_id": [BYTE_EOS, 7], "max_position_embeddings": 99, "dtype": "bfloat16"}
    tiny_folder.change_config(folder, **keys)
    (folder / GENERATION).write_text('{"eos_token_id": [7, 9],  "top_k": 64}')
    return folder


def read(folder, values, generation=None):
    """The settings of a config.json, and of a generation_config.json where it is given."""
    (folder / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (folder / GENERATION).write_text(json.dumps(generation))
    return pretrained.read_settings(folder)


def test_all_ids_that_end_a_text_are_found(folder, tmp_path):
    assert pretrained.read_settings(folder).stop_ids == (BYTE_EOS, 7, 9)
    assert read(tmp_path, {"model_type": "gemma3_text"}).stop_ids == ()
    inner = {"eos_token_id": 1}
    outer = {"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": inner}
    found = read(tmp_path, outer, {"eos_token_id": 5})
    assert found.stop_ids == (1, 106, 5)
    assert found.token_ids["eos_token_id"] == [1, 106]


def test_positions_and_dtype_of_each_layout(tmp_path):
    found = read(tmp_path, {"model_type": "gemma4_unified", "text_config": {}})
    assert (found.max_positions, found.dtype) == (262_144, None)
    inner = {"max_position_embeddings": 5, "torch_dtype": "bfloat16"}
    found = read(tmp_path, {"model_type": "gemma3", "text_config": inner})
    assert (found.max_positions, found.dtype) == (5, "bfloat16")


@pytest.mark.parametrize(
    ("keys", "generation", "named"),
    [
        ({"eos_token_id": "1"}, None, "eos_token_id"),
        ({"eos_token_id": [1, -1]}, None, "eos_token_id"),
        ({"bos_token_id": 1.5}, None, "bos_token_id"),
        ({"max_position_embeddings": "long"}, None, "max_position_embeddings"),
        ({}, [1], "holds no object"),
        ({}, {"eos_token_id": {}}, "eos_token_id"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_by_name(keys, generation, named, tmp_path):
    with pytest.raises(ConfigError, match=named):
        read(tmp_path, {"model_type": "gemma3_text", **keys}, generation)


def test_what_is_read_is_written_again(folder, tmp_path):
    hybrid.save_pretrained(hybrid.from_pretrained(folder), tmp_path / "again")
    assert (tmp_path / "again" / GENERATION).read_bytes() == (folder / GENERATION).read_bytes()
    assert pretrained.read_settings(tmp_path / "again").stop_ids == (BYTE_EOS, 7, 9)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["max_position_embeddings"] == 99
    assert written["bos_token_id"] == BYTE_BOS
    assert written["dtype"] == "float32"  # what it was read as


def run_of(folder, start):
    """The record of a run that was started from a folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": {}, "init_from": str(start)}))
    return folder


def test_a_run_carries_the_settings_of_the_folder_that_it_was_started_from(folder, tmp_path):
    first = run_of(tmp_path / "first", folder)
    second = run_of(tmp_path / "second", first)
    model = hybrid.from_pretrained(folder)
    for run in (first, second):
        start = json.loads((run / "config.json").read_text())["init_from"]
        origin = Origin(run, {}, "byte", "auto", run={"init_from": start})
        tuned = dataclasses.replace(model, origin=origin)
        assert base_folder(origin) == folder
        assert api.base_dtype(tuned) == "bfloat16"
        written = tmp_path / f"{run.name}_out"
        hybrid.save_pretrained(tuned, written, api.base_dtype(tuned))
        found, wanted = map(pretrained.read_settings, (written, folder))
        assert dataclasses.replace(found, token_ids=wanted.token_ids) == wanted
        assert found.token_ids.items() >= wanted.token_ids.items()
        tensors = load_file(written / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    alone = Origin(tmp_path, {}, "byte", "auto", run={"init_from": str(tmp_path / "gone")})
    assert base_folder(alone) is None
    assert api.base_dtype(dataclasses.replace(model, origin=alone)) == ""


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_dtype_that_is_not_served_is_refused_and_nothing_written(dtype, folder, tmp_path):
    with pytest.raises(ConfigError, match="dtype: is not served"):
        hybrid.save_pretrained(hybrid.from_pretrained(folder), tmp_path / "out", dtype)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_bos_and_eos_says_so(tmp_path):
    (tmp_path / "from").mkdir()
    write_tokenizer("byte", tmp_path / "from")
    config = {"bos_token": None, "eos_token": None, "pad_token": "<pad>"}
    (tmp_path / "from" / "tokenizer_config.json").write_text(json.dumps(config))
    model = (tiny_folder.params_of(), tiny_folder.CONFIG)
    pretrained.write_folder(*model, tmp_path / "to", str(tmp_path / "from"))
    written = json.loads((tmp_path / "to" / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (None, None)


@pytest.mark.parametrize(
    ("bos", "source", "adds_bos"),
    [
        ("auto", "text", True),
        ("document", "text", True),
        ("window", "text", True),
        ("never", "text", False),
        ("auto", "mqar", False),
    ],
)
def test_bytes_get_bos_where_the_run_gave_it(bos, source, adds_bos, folder, tmp_path):
    origin = Origin(tmp_path, {}, "byte", bos, run={"data": {"source": source}})
    model = dataclasses.replace(hybrid.from_pretrained(folder), origin=origin)
    hybrid.save_pretrained(model, tmp_path / "out")
    there = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert there.encode("ab").ids == [BYTE_BOS] * adds_bos + [97, 98]
    assert there.encode("ab", add_special_tokens=False).ids == [97, 98]
