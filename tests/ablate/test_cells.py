"""A sweep's config becomes runs: crossed, named, matched, seeded; nonsense is refused by key."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid import config as config_lib
from hybrid.ablate import config as ablate_config
from hybrid.ablate.config import SweepConfig
from hybrid.ablate.run.cells import cell_name, cells, folder_names, runs
from hybrid.ablate.run.match import train_flops
from hybrid.config import ConfigError
from hybrid.costs import model_costs as cost

BASE = {
    "model": {"pattern": "LG", "num_layers": 2, "d_model": 32, "head_dim": 8, "ffn_dim": 64},
    "training": {"num_steps": 100, "context_length": 128},
}
WINDOW = ("model.window_size", (8, 128))


def sweep(**keys) -> SweepConfig:
    return config_lib.build(SweepConfig, {"base": BASE, **keys})


def names(config):
    return [cell.name for cell in cells(config)]


def test_axes_are_crossed_and_named_by_what_varies():
    crossed = sweep(axes=[WINDOW, ("model.unified_kv", [False, True])])
    assert names(crossed) == [
        "window_size=8,unified_kv=false",
        "window_size=8,unified_kv=true",
        "window_size=128,unified_kv=false",
        "window_size=128,unified_kv=true",
    ]
    model = cells(crossed)[1].experiment.model
    assert (model.window_size, model.unified_kv) == (8, True)


def test_a_cell_may_have_a_name_and_keys_of_one_word_are_told_apart():
    named = sweep(cells=[{"model.pattern": "G", "name": "all global"}, {"model.window_size": 4}])
    assert names(named) == ["all global", "window_size=4"]
    twins = {"training.context_length": 4, "eval.context_length": (4, 8)}
    assert cell_name(twins) == "training.context_length=4,eval.context_length=4-8"


def test_every_cell_is_run_in_each_arm_at_each_rate_and_seed():
    config = sweep(
        axes=[WINDOW],
        arms=[("text", {}), ("needle", {"data.source": "needle", "training.num_steps": 7})],
        learning_rates=[0.01, 0.002],
        seeds=[3, 5],
    )
    all_runs = runs(config)
    assert len(all_runs) == 2 * 2 * 2 * 2
    assert all_runs[0].folder == "runs/text/window_size=8/learning_rate=0.01/seed=3"
    last = all_runs[-1]
    assert last.folder == "runs/needle/window_size=128/learning_rate=0.002/seed=5"
    assert last.experiment.training.seed == 5
    assert last.experiment.optimizer.learning_rate == 0.002
    assert (last.experiment.data.source, last.experiment.training.num_steps) == ("needle", 7)


def folders(config):
    return [cell.folder.removeprefix("runs/") for cell in cells(config)]


def test_short_names_are_their_folders():
    crossed = sweep(axes=[WINDOW, ("optimizer.learning_rate", (0.00021544346900318823, 1e-3))])
    assert folders(crossed)[:2] == [
        "window_size=8,learning_rate=0.000215443",
        "window_size=8,learning_rate=0.001",
    ]
    named = sweep(cells=[{"model.pattern": "G", "name": "all global: 5/1"}, {"model.d_model": 64}])
    assert folders(named) == ["all_global__5_1", "d_model=64"]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    names=st.lists(
        st.one_of(
            st.text(alphabet="aAéÉßs_/. :\U0001f600", min_size=1, max_size=6),
            st.text(alphabet="aAé", min_size=1, max_size=2).map(lambda text: text * 150),
        ),
        unique=True,
        max_size=8,
    )
)
def test_no_two_cells_share_a_folder_on_any_file_system(names):
    found = folder_names(names)
    assert list(found) == names
    alike = {unicodedata.normalize("NFC", folder).lower() for folder in found.values()}
    assert len(alike) == len(names)
    for folder in found.values():
        assert len(folder.encode()) <= 255
        assert not set("/ :\0") & set(folder)
        assert folder not in ("", ".", "..")
    assert folder_names(names) == found
    assert names == [] or found[names[0]] == folder_names(names[:1])[names[0]]


def test_cells_that_differ_beyond_their_names_are_told_apart():
    rates = ("optimizer.learning_rate", (0.1234567, 0.12345678))
    first, second = cells(sweep(axes=[rates]))
    assert first.name == "learning_rate=0.123457"
    assert second.name.startswith("learning_rate=0.123457-")
    assert first.folder != second.folder
    tried = runs(sweep(axes=[WINDOW], learning_rates=[0.1234567, 0.12345678, 0.5], seeds=[0]))
    assert len({run.folder for run in tried}) == 6
    assert tried[2].folder == "runs/window_size=8/learning_rate=0.5/seed=0"
    arms = sweep(axes=[WINDOW], arms=[("a b", {}), ("a_b", {}), ("A_B", {})], seeds=[0])
    assert len({run.folder.lower() for run in runs(arms)}) == 6
    with pytest.raises(ConfigError, match=r"^cells: give a cell twice, got x"):
        cells(sweep(cells=[{"name": "x"}, {"name": "x", "model.window_size": 8}]))


def test_runs_of_one_shape_follow_each_other():
    all_runs = runs(sweep(axes=[WINDOW], seeds=[0, 1, 2]))
    assert [run.cell.name for run in all_runs] == ["window_size=8"] * 3 + ["window_size=128"] * 3


def test_overrides_of_a_baseline_may_be_pairs_a_dict_or_nested():
    for baseline in (
        [("model.window_size", 128)],
        {"model.window_size": 128},
        {"model": {"window_size": 128}},
    ):
        assert sweep(axes=[WINDOW], baseline=baseline).baseline == {"model.window_size": 128}


def test_flops_are_matched_by_steps():
    config = sweep(axes=[WINDOW], baseline={"model.window_size": 128}, match="flops")
    short, full = cells(config)
    assert full.changed == {}
    assert short.changed["training.num_steps"][0] == 100
    assert short.experiment.training.num_steps > 100
    one_step = train_flops(short.experiment, 1)
    assert abs(train_flops(short.experiment) - train_flops(full.experiment)) <= one_step / 2


def test_parameters_are_matched_by_the_feed_forwards_width():
    config = sweep(axes=[("model.unified_kv", (True, False))], match="params")
    config = config_lib.build(
        SweepConfig, {"base": BASE, "axes": [("model.num_heads", (4, 8))], "match": "params"}
    )
    few, many = cells(config)
    assert few.changed == {}
    assert list(many.changed) == ["model.ffn_dim"]
    assert many.experiment.model.ffn_dim < few.experiment.model.ffn_dim
    a_unit_of_width = 3 * 32 * 2  # gate, up and down in two layers
    off = cost.num_params(many.experiment.model) - cost.num_params(few.experiment.model)
    assert abs(off) <= a_unit_of_width / 2


def test_flops_of_a_schedule_are_those_of_its_stages():
    halves = {"training.window_schedule": ((0.5, 8), (0.5, 128)), "model.window_size": 128}
    halves = sweep(cells=[halves, *_windows()])
    scheduled, short, full = (train_flops(cell.experiment) for cell in cells(halves))
    assert scheduled == pytest.approx((short + full) / 2)
    assert train_flops(cells(halves)[0].experiment, 50) == pytest.approx(short / 2)


def _windows():
    return {"model.window_size": 8}, {"model.window_size": 128}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("axes", {}),
        ("axes", {"axes": []}),
        ("axes", {"axes": [WINDOW], "cells": [{"model.window_size": 8}]}),
        ("axes", {"axes": [("model.windw_size", (8, 16))]}),
        ("axes", {"axes": [("model.window_size", ())]}),
        ("axes", {"axes": [("model.window_size", 8)]}),
        ("axes", {"axes": ["model.window_size"]}),
        ("axes", {"axes": [WINDOW, WINDOW]}),
        ("axes", {"axes": [("model.window_size", (8, 8))]}),
        ("axes", {"axes": [("training.seed", (0, 1))]}),
        ("axes", {"axes": [("model", (0, 1))]}),
        ("model.window_size", {"axes": [("model.window_size", (8, 0))]}),
        ("model.window_size", {"axes": [("model.window_size", (8, "wide"))]}),
        ("model.pattern", {"axes": [("model.pattern", ("LG", "L"))]}),
        ("model.pattern", {"axes": [("model.pattern", ("LG", "LM"))]}),
        ("cells", {"cells": [{"model.window": 8}]}),
        ("cells", {"cells": [8]}),
        ("cells", {"cells": "model.window_size=8"}),
        ("arms", {"axes": [WINDOW], "arms": [("text", {"data.sorce": "text"})]}),
        ("arms", {"axes": [WINDOW], "arms": [("a", {}), ("a", {})]}),
        ("baseline", {"axes": [WINDOW], "baseline": {"model.window_size": 16}}),
        ("baseline", {"axes": [WINDOW], "baseline": {"model.window": 8}}),
        ("baseline", {"axes": [WINDOW], "baseline": 8}),
        ("seeds", {"axes": [WINDOW], "seeds": []}),
        ("seeds", {"axes": [WINDOW], "seeds": [1, 1]}),
        ("seeds", {"axes": [WINDOW], "seeds": [-1]}),
        ("learning_rates", {"axes": [WINDOW], "learning_rates": [0.0]}),
        ("match", {"axes": [WINDOW], "match": "time"}),
        ("learning_rates", {"axes": [WINDOW], "trained": "run", "learning_rates": [0.1]}),
        ("basis", {"axes": [WINDOW], "basis": {}}),
        ("base.model.patern", {"axes": [WINDOW], "base": {"model": {"patern": "L"}}}),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_by_key(key, wrong):
    with pytest.raises(ConfigError) as error:
        runs(config_lib.build(SweepConfig, {"base": BASE, **wrong}))
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_a_page_begins_with_the_bases_defaults_and_takes_all_forms():
    page = ablate_config.defaults()
    page.base.model.window_size = 16
    page.axes = [("training.num_steps", (10, 20))]
    page.baseline = [("training.num_steps", 20)]
    built = config_lib.build(SweepConfig, page.to_dict())
    assert built.base.model.window_size == 16
    assert [cell.experiment.training.num_steps for cell in cells(built)] == [10, 20]
