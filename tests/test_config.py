"""A config is read, overridden and refused by its dotted keys."""

import dataclasses
import importlib.util
import os
import pathlib
import re

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from pretrained import tiny_folder

from hybrid import config as config_lib
from hybrid import experiment
from hybrid.ablate.config import SweepConfig
from hybrid.ablate.run.cells import cells
from hybrid.config import ConfigError
from hybrid.evaluation.config import RetrievalConfig
from hybrid.generate import checked_seeds
from hybrid.pages import load_page

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
    sweep = config_lib.build(SweepConfig, load_page(f"configs/{page}.py"))
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


# --- Lists and paths as text -----------------------------------------------------------------

ITEMS = st.lists(st.text(alphabet="ab ,'\"[]().*~/é", max_size=6), max_size=4)


def quoted(item, quote):
    return quote + item.replace(quote, quote * 2) + quote


@settings(derandomize=True, deadline=None, max_examples=300)
@given(items=ITEMS, quotes=st.lists(st.sampled_from("'\""), min_size=4, max_size=4),
       brackets=st.sampled_from(["{}", "[{}]", "({})", " [ {} ] "]))  # fmt: skip
def test_any_list_goes_through_quotes(items, quotes, brackets):
    text = ", ".join(map(quoted, items, quotes))
    assert config_lib.split_list(brackets.format(text)) == items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a.txt,b c.txt", ["a.txt", "b c.txt"]),
        ("'a,b/1.txt','a,b/2.txt'", ["a,b/1.txt", "a,b/2.txt"]),
        ("[01]/[ab]", ["[01]/[ab]"]),
        ("[01]/a,b/[ab]", ["[01]/a", "b/[ab]"]),
        ("[[01]/a,b/[ab]]", ["[01]/a", "b/[ab]"]),
        ("'[ab]'", ["[ab]"]),
        ("['a]',\"b)\"]", ["a]", "b)"]),
        ("it's,don't", ["it's", "don't"]),
        ("(8,)", ["8"]),
        ("", []),
        ("[]", []),
        ("[", ["["]),
    ],
)
def test_lists_are_read_as_they_are_meant(text, items):
    assert config_lib.split_list(text) == items


def test_a_tilde_is_opened_in_every_key_that_names_files(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = [
        key
        for key in config_lib.walk(experiment.Experiment)
        if re.search("files or|files, globs|path of|folder of|this folder", key.doc)
    ]
    assert {key.name for key in keys} == {
        "data.paths", "data.tokenizer", "data.eval_paths", "data.cache_dir", "init_from",
        "eval.retrieval.mrcr_paths", "eval.retrieval.squad_path", "eval.retrieval.hotpotqa_path",
        "eval.retrieval.mrcr_tokenizer", "eval.long_perplexity.judge",
    }  # fmt: skip
    data = {"source": "text", "paths": ["~/a/*.txt", "b~"], "eval_paths": "~/e"}
    data |= {"tokenizer": "~/t", "cache_dir": "~"}
    files = {"mrcr_paths": "~/m/*.jsonl", "squad_path": "~/s", "hotpotqa_path": "~/h"}
    files |= {"mrcr_tokenizer": "~/o"}
    scored = {"retrieval": files, "long_perplexity": {"judge": "~/j"}}
    built = experiment.from_config({"data": data, "init_from": "~/run", "eval": scored})
    assert built.eval.retrieval.mrcr_paths == (f"{tmp_path}/m/*.jsonl",)
    assert built.eval.retrieval.squad_path == f"{tmp_path}/s"
    assert built.eval.retrieval.hotpotqa_path == f"{tmp_path}/h"
    assert built.eval.retrieval.mrcr_tokenizer == f"{tmp_path}/o"
    assert built.eval.long_perplexity.judge == f"{tmp_path}/j"
    assert built.data.paths == (f"{tmp_path}/a/*.txt", "b~")
    assert built.data.eval_paths == (f"{tmp_path}/e",)
    assert built.data.tokenizer == f"{tmp_path}/t"
    assert built.data.cache_dir == str(tmp_path)
    assert built.init_from == f"{tmp_path}/run"
    swept = config_lib.build(SweepConfig, {"trained": "~/run", "axes": [("eval.stride", [1])]})
    assert swept.trained == f"{tmp_path}/run"


@pytest.mark.parametrize(
    "path", ["~", "~/x", "~nobody_of_this_name/x", "a\0b", "a" * 300, "\ud800"]
)
def test_a_path_that_names_nothing_is_refused_by_key(monkeypatch, path):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no home is known
    with pytest.raises(ConfigError, match=r"^data\.cache_dir: "):
        experiment.from_config({"data": {"cache_dir": path}})


@pytest.mark.parametrize("number", [-1, 2**32, 2**63, 2**64, 10**5000], ids=int.bit_length)
def test_seeds_that_would_be_alike_are_refused_everywhere(number):
    assert (
        jax.random.key_data(jax.random.key(0)) == jax.random.key_data(jax.random.key(2**32))
    ).all()
    assert config_lib.MOST_SEED == 2**32 - 1
    sweep = {"axes": [("model.window_size", (8,))], "seeds": [0, number]}
    with pytest.raises(ConfigError, match=r"^training\.seed: must"):
        experiment.from_config({"training": {"seed": number}})
    with pytest.raises(ConfigError, match=r"^seeds: must"):
        config_lib.build(SweepConfig, sweep)
    with pytest.raises(ConfigError, match=r"^seed: must be a whole number"):
        checked_seeds(number, 1)
    with pytest.raises(ConfigError, match=r"^seed: must be a whole number"):
        checked_seeds([0, number], 2)


def test_the_largest_seed_is_accepted_and_is_none_of_the_others():
    largest = config_lib.MOST_SEED
    assert experiment.from_config({"training": {"seed": largest}}).training.seed == largest
    assert checked_seeds([0, largest], 2).tolist() == [0, largest]
    for seed in (True, 0.5, "1", None):
        with pytest.raises(ConfigError, match=r"^seed: must be a whole number"):
            checked_seeds(seed, 1)


@pytest.mark.parametrize(
    "text", ["1" * 5000, "0x" + "f" * 5000, "1e999", "nan", "{[]: 1}", "((((", "'\\d'", "1is 2"]
)
def test_texts_that_are_no_number_are_refused_by_key(text, recwarn):
    for key in ("optimizer.learning_rate", "training.num_steps", "training.window_schedule"):
        with pytest.raises(ConfigError, match=rf"^{key.replace('.', '[.]')}: must"):
            loaded(**{key.replace(".", "__"): text})
    assert not recwarn


@pytest.mark.parametrize(
    ("name", "values"),
    [("tasks", ("vt", "vt")), ("lengths", (64, 80, 64)), ("depths", (0.0, 0.0)),
     ("num_needles", (2, 2))],
)  # fmt: skip
def test_nothing_is_asked_twice(name, values):
    with pytest.raises(ConfigError, match=rf"^{name}: must name each one once, got \("):
        RetrievalConfig(**{name: values})
