"""Folders in and out: bit by bit, in shards, in another dtype, whole or not at all."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import simulated
from pretrained import tiny_folder

from hybrid import pretrained
from hybrid.config import ConfigError
from hybrid.data import tokenizers
from hybrid.evaluation.__main__ import main as evaluate
from hybrid.loading import api
from hybrid.pretrained import names, read, tensors

EXPERTS = dataclasses.replace(
    tiny_folder.CONFIG, num_experts=4, num_active_experts=2, expert_dim=6, num_kv_shared_layers=0
)


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("most_bytes", [10**9, 3000, 1])
@pytest.mark.parametrize("config", [tiny_folder.CONFIG, EXPERTS], ids=["shared", "experts"])
def test_what_is_written_is_read_bit_by_bit(config, most_bytes, tmp_path):
    folder = tiny_folder.write(tmp_path / "folder", config, most_bytes=most_bytes)
    found = api.from_pretrained(folder)
    assert found.config == dataclasses.replace(config, last_layer="force_global")
    assert_equal(found.params, tiny_folder.params_of(config))
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert (len(files) == 1) == (most_bytes == 10**9)
    if len(files) > 1:
        index = json.loads((folder / tensors.INDEX).read_text())
        assert set(index["weight_map"].values()) == set(files)
        sizes = [(folder / name).stat().st_size for name in files]
        assert index["metadata"]["total_size"] < sum(sizes)


def test_bfloat16_files_are_read_as_they_are_or_wider(tmp_path):
    folder = tiny_folder.write(tmp_path / "folder")
    tiny_folder.change_tensors(
        folder, lambda all_: {n: v.astype(ml_dtypes.bfloat16) for n, v in all_.items()}
    )
    wide, narrow = api.from_pretrained(folder), api.from_pretrained(folder, "bfloat16")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_folder.params_of())
    assert_equal(narrow.params, rounded)
    assert_equal(wide.params, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded))
    tokens = jnp.zeros((1, 3), jnp.int32)
    assert wide(tokens).dtype == narrow(tokens).dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8"])
def test_dtypes_that_are_not_served_are_refused_by_name(dtype, tmp_path):
    folder = tiny_folder.write(tmp_path / "folder")
    with pytest.raises(ConfigError, match=f"dtype: .*{dtype}"):  # x64 mode is off here
        api.from_pretrained(folder, dtype)


def test_unneeded_tensors_of_layers_that_reuse_keys_and_values_are_ignored(tmp_path):
    folder = tiny_folder.write(tmp_path / "folder")
    redundant = {
        f"model.layers.3.self_attn.{name}.weight": np.zeros(shape, np.float32)
        for name, shape in {"k_proj": (8, 8), "v_proj": (8, 8), "k_norm": (8,)}.items()
    }
    tiny_folder.change_tensors(folder, lambda all_: all_ | redundant)
    assert_equal(api.from_pretrained(folder).params, tiny_folder.params_of())


def test_names_of_a_multimodal_model_and_its_towers(tmp_path):
    folder = tiny_folder.write(tmp_path / "folder")

    def wrapped(all_):
        towers = {
            f"model.{tower}.weight": np.zeros(3, np.float32)
            for tower in ("vision_tower.x", "audio_tower.y", "embed_vision.z", "embed_audio.z")
        }
        inner = {n.replace("model.", "model.language_model.", 1): v for n, v in all_.items()}
        return inner | towers

    tiny_folder.change_tensors(folder, wrapped)
    values = json.loads((folder / "config.json").read_text())
    outer = {"model_type": "gemma4", "text_config": values, "vision_config": {"hidden_size": 3}}
    (folder / "config.json").write_text(json.dumps(outer))
    assert_equal(api.from_pretrained(folder).params, tiny_folder.params_of())


def test_a_failure_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(tensors, "write", fail)
    with pytest.raises(OSError, match="no space"):
        tiny_folder.write(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="output: must be new or an empty folder"):
        tiny_folder.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_the_byte_tokenizer_is_written_as_one_that_others_read(tmp_path):
    folder = tiny_folder.write(tmp_path / "folder")
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = tokenizers.load(str(folder))
    for text in ("plain", "tabs\tand\nlines ", "Grüße, 世界 🌍", "\x00\x7f", "<bos>"):
        wanted = list(text.encode())
        assert ours.encode(text).tolist() == wanted
        assert ours.decode(wanted) == text
        if "<bos>" not in text:
            assert theirs.encode(text, add_special_tokens=False).ids == wanted
            assert theirs.decode(wanted) == text
    assert (ours.pad_id, ours.bos_id, ours.eos_id) == (256, 257, 258)
    written = json.loads((folder / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (257, 258)


def test_a_folders_tokenizer_goes_along(tmp_path):
    first = tiny_folder.write(tmp_path / "first")
    (first / "chat_template.jinja").write_text("{{ x }}")
    found = api.from_pretrained(first)
    api.save_pretrained(found, tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes()


def test_a_model_tuned_to_chat_is_told_apart(tmp_path):
    folder = tiny_folder.write(tmp_path / "gemma-4-e2b")
    assert pretrained.raw_text_warning(folder) == []
    (folder / "chat_template.jinja").write_text("{{ x }}")
    (line,) = pretrained.raw_text_warning(folder)
    assert "tuned to chat" in line
    folder.rename(tmp_path / "gemma-4-e2b-it")
    (tmp_path / "gemma-4-e2b-it" / "chat_template.jinja").unlink()
    assert len(pretrained.raw_text_warning(tmp_path / "gemma-4-e2b-it")) == 1


def test_scoring_warns_of_chat_models_and_of_losses_above_chance(tmp_path, capsys):
    folder = tiny_folder.write(tmp_path / "gemma-it")
    (tmp_path / "text.txt").write_text("some text of a few words, " * 4)
    words = [f"--config.data.paths={tmp_path / 'text.txt'}", "--config.data.source=text"]
    words += [f"--pretrained={folder}", f"--config.data.cache_dir={tmp_path / 'cache'}"]
    words += ["--config.eval.context_length=16", f"--output={tmp_path / 'result.json'}"]
    assert evaluate(words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "tuned to chat" in said[0]
    assert "the first window's loss" in said[1]  # random weights of variance 1
    assert "above chance (5.58)" in said[1]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["step"], result["bos"]) == (None, "window")
    assert result["num_tokens"] == 26 * 4 + 1


# --- Eight devices, and memory ---------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


def test_a_sharded_read_equals_the_plain_one_and_is_sharded(report):
    assert report["equal"]
    assert report["share"] < 0.5


def test_reading_holds_no_table_on_the_host_beyond_a_block(report):
    """The tables are 12 times the block; read whole, or once more, they would show."""
    assert report["table"] > 12 * report["block"]
    assert report["beyond"] < 0.7 * report["table"]


def main():
    import pathlib
    import tempfile

    from hybrid import model
    from hybrid.pretrained import read
    from hybrid.sharding import MeshConfig, make_mesh, shardings

    with tempfile.TemporaryDirectory() as root:
        folder = tiny_folder.write(pathlib.Path(root) / "folder", EXPERTS)
        mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2, expert=2))
        places = shardings(mesh, model.logical_axes(EXPERTS), model.abstract(EXPERTS))
        found = read.read_params(folder, EXPERTS, places, "float32")
        plain = tiny_folder.params_of(EXPERTS)
        equal = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), found, plain)
        leaves = jax.tree.leaves(found)
        on_one = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
        result = {
            "equal": all(jax.tree.leaves(equal)),
            "share": float(on_one / sum(leaf.size for leaf in leaves)),
        }
        print(json.dumps(result | _memory(pathlib.Path(root) / "large")))


def _memory(folder):
    """Peak bytes beyond the arrays returned, of reading a folder whose tables dominate."""
    from safetensors.numpy import save_file

    from hybrid import model
    from hybrid.pretrained import names, read
    from hybrid.sharding import MeshConfig, make_mesh, shardings

    config = dataclasses.replace(
        tiny_folder.CONFIG, vocab_size=120_000, d_model=64, layer_embedding_dim=64
    )
    tiny_folder.write(folder)
    stored = names.stored_tensors(config, "model.")
    file = folder / "model.safetensors"
    save_file({name: np.zeros(g[0].file_shape, np.float32) for name, g in stored.items()}, file)
    table = 4 * 120_000 * (64 + 4 * 64)
    read.BLOCK_BYTES = table // 16
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    places = shardings(mesh, model.logical_axes(config), model.abstract(config))
    jax.block_until_ready(jnp.ones(8))
    _forget_peak()
    before = _peak()
    found = jax.block_until_ready(read.read_params(folder, config, places, "float32"))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(found))
    return {"table": table, "block": read.BLOCK_BYTES, "beyond": _peak() - before - held}


def _forget_peak():
    """Sets this process's peak memory back to what it holds now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak():
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()


# --- Names of tensors ------------------------------------------------------------------------


def renamed(change):
    return lambda all_: {change(name): value for name, value in all_.items()}


@pytest.mark.parametrize("prefix", names.PREFIXES)
def test_the_decoder_is_found_under_every_prefix(prefix, tmp_path):
    folder = tiny_folder.write(tmp_path / "folder")
    tiny_folder.change_tensors(folder, renamed(lambda name: prefix + name.removeprefix("model.")))
    assert_equal(api.from_pretrained(folder).params, tiny_folder.params_of())


@pytest.mark.parametrize("head", names.HEADS)
def test_a_head_that_is_the_embedding_is_accepted_and_another_is_refused(
    head, tmp_path, monkeypatch
):
    monkeypatch.setattr(read, "BLOCK_BYTES", 1000)  # compared in several stretches
    folder = tiny_folder.write(tmp_path / "folder")
    embedding = "model.embed_tokens.weight"
    tiny_folder.change_tensors(folder, lambda all_: all_ | {head: all_[embedding]})
    assert_equal(api.from_pretrained(folder).params, tiny_folder.params_of())

    def changed(all_):
        return all_ | {head: all_[embedding] + (np.arange(264) == 263)[:, None].astype(np.float32)}

    for change in (changed, lambda all_: all_ | {head: all_[embedding][:-1]}):
        tiny_folder.change_tensors(folder, change)
        with pytest.raises(ConfigError, match=f"an output head of its own.*{head}"):
            api.from_pretrained(folder)
