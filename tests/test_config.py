"""A config is read, overridden and refused by its dotted keys."""

import dataclasses
import importlib.util
import pathlib

import pytest
from ml_collections import ConfigDict
from pretrained import tiny_folder

from hybrid import config as config_lib
from hybrid import experiment
from hybrid.ablate.config import SweepConfig
from hybrid.ablate.run.cells import cells
from hybrid.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALL_PAGES = sorted(page.stem for page in (ROOT / "configs").glob("[!_]*.py"))
PAGES = ["micro", "small", "tiny"]  # in three variants
SWEEPS = [page for page in ALL_PAGES if page.startswith("ablate_")]


def loaded(page="configs/tiny.py", **overrides):
    return experiment.load(page, {key.replace("__", "."): text for key, text in overrides.items()})


@pytest.mark.parametrize("variant", ["", ":hybrid", ":local", ":global"])
@pytest.mark.parametrize("page", PAGES)
def test_every_page_and_variant_loads(page, variant):
    letters = {":local": "L", ":global": "G"}.get(variant, "LLLLLG")
    assert loaded(f"configs/{page}.py{variant}").model.pattern == letters


@pytest.mark.parametrize("page", [page for page in SWEEPS if page != "ablate_window_eval"])
def test_every_sweep_can_be_planned(page):
    sweep = config_lib.build(SweepConfig, config_lib.load_page(f"configs/{page}.py"))
    assert len(sweep.seeds) >= 3
    assert len(cells(sweep)) >= 2


def test_pages_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert loaded("configs/tiny.py") == loaded(str(ROOT / "configs/tiny.py"))


def test_overrides_take_the_type_of_their_key():
    config = loaded(
        model__window_sizes="8,8,16,16,32,0",
        model__unified_kv="false",
        optimizer__learning_rate="1e-3",
        training__num_steps="7",
        eval__context_length="(64,128)",
        data__paths="a.txt,b c.txt",
        data__source="text",
    )
    assert config.model.window_sizes == (8, 8, 16, 16, 32, 0)
    assert config.model.unified_kv is False
    assert config.optimizer.learning_rate == 1e-3
    assert config.training.num_steps == 7
    assert config.eval.context_length == (64, 128)
    assert config.data.paths == ("a.txt", "b c.txt")


def test_a_config_survives_json_and_a_config_dict():
    config = loaded(model__window_sizes="8,8,8,8,8,0")
    assert experiment.from_config(experiment.to_dict(config)) == config
    assert experiment.from_config(ConfigDict(experiment.to_dict(config))) == config


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"^model\.windw_size: unknown key; .*model\.window_size"):
        loaded(model__windw_size="3")
    with pytest.raises(ConfigError, match=r"^window_size: unknown key; .*model\.window_size"):
        loaded(window_size="3")
    with pytest.raises(ConfigError, match=r"^model\.pattrn: .*model\.pattern"):
        experiment.from_config({"model": {"pattrn": "L"}})


def test_a_string_key_refuses_a_number_from_a_page():
    with pytest.raises(ConfigError, match=r"^model\.pattern: must be a string, got 123"):
        experiment.from_config({"model": {"pattern": 123}})


def test_an_integer_key_refuses_a_truth_value():
    with pytest.raises(ConfigError, match=r"^model\.num_layers: must be an integer, got True"):
        experiment.from_config({"model": {"num_layers": True}})


def test_every_key_has_a_meaning_and_the_page_of_keys_is_current():
    for info in config_lib.walk(experiment.Experiment):
        assert info.doc
    found = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    generate = importlib.util.module_from_spec(found)
    found.loader.exec_module(generate)
    assert (ROOT / "docs/configs.md").read_text() == generate.config_page()
    assert (ROOT / "docs/ablation.md").read_text() == generate.ablation_page()
    assert (ROOT / "docs/memory.md").read_text() == generate.memory_page()


def test_every_key_is_read_somewhere():
    sources = [path.read_text() for path in (ROOT / "hybrid").rglob("*.py")]

    def is_read(leaf):
        return any(f".{leaf}" in text or f'"{leaf}"' in text for text in sources)

    unread = [
        info.name
        for info in config_lib.walk(experiment.Experiment)
        if not is_read(info.name.rsplit(".", 1)[-1])
    ]
    assert not unread


def test_float64_needs_x64(x64):
    assert loaded(model__dtype="float64").model.dtype == "float64"


def test_float64_without_x64_is_refused():
    with pytest.raises(ConfigError, match=r"^model\.dtype: needs jax's x64 mode"):
        loaded(model__dtype="float64")


def test_experiments_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded().model.num_layers = 3


def test_init_from_is_remembered_whole_and_gives_model_and_tokenizer(tmp_path, monkeypatch):
    folder = tiny_folder.write(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    config = loaded("configs/finetune.py", init_from="folder", model__remat="full")
    assert config.init_from == str(folder)
    assert config.model == dataclasses.replace(
        tiny_folder.CONFIG, last_layer="force_global", remat="full"
    )
    assert (config.data.tokenizer, config.data.bos) == (str(folder), "window")
    other = loaded("configs/tiny.py", init_from="folder")
    assert (other.data.tokenizer, other.data.bos) == ("byte", "window")
    assert other.model == loaded("configs/tiny.py").model
    task = loaded("configs/tiny.py", init_from="folder", data__source="needle")
    assert task.data.bos == "auto"  # a task has no BOS
