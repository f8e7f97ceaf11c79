"""A sweep.json of an earlier version is read: its cells keep their names, folders and windows."""

import json

import pytest

from hybrid.ablate.config import SweepConfig, defaults
from hybrid.ablate.run import sweep as sweep_lib
from hybrid.config import ConfigError, build, updated

SCHEDULES = (((1.0, 256),), ((0.5, 64), (0.5, 256)))
OLD, NEW = "model.window_schedule", "training.window_schedule"


def sweep_of(folder, **keys):
    base = updated(defaults("configs/micro.py:local").to_dict(), {"seeds": (0,), **keys})
    return sweep_lib.from_config(build(SweepConfig, base), "page", folder)


def record(sweep, **keys):
    """Writes sweep.json as the earlier version would have, with `keys` of the config."""
    held = json.loads(json.dumps(sweep.to_dict()))
    held["config"] |= keys
    held["config"]["base"]["model"]["window_schedule"] = []
    del held["config"]["base"]["training"]["window_schedule"]
    sweep.folder.mkdir(exist_ok=True)
    (sweep.folder / sweep_lib.SWEEP).write_text(json.dumps(held))


def facts(sweep):
    return [
        (run.folder, run.experiment.model.window_size, run.experiment.training.window_schedule)
        for run in sweep.runs
    ]


def test_cells_of_a_former_key_are_those_of_the_new_one(tmp_path):
    cells = [
        {"name": str(number), NEW: schedule, "model.window_size": 256}
        for number, schedule in enumerate(SCHEDULES)
    ]
    sweep = sweep_of(tmp_path / "sweep", cells=cells, match="flops")
    old = [{"name": str(number), OLD: schedule} for number, schedule in enumerate(SCHEDULES)]
    record(sweep, cells=old)
    assert facts(sweep_lib.read(tmp_path / "sweep")) == facts(sweep)
    sweep_of(tmp_path / "sweep", cells=cells, match="flops")  # goes on in the same folder


def test_an_axis_of_the_former_key_keeps_its_folders(tmp_path):
    sweep = sweep_of(tmp_path, axes=[("optimizer.beta1", (0.8, 0.9))])
    record(sweep, axes=[(OLD, ((), *SCHEDULES))], baseline={OLD: SCHEDULES[0]})
    assert facts(sweep_lib.read(tmp_path)) == [
        ("runs/window_schedule=none/seed=0", 32, ()),
        ("runs/window_schedule=1-256/seed=0", 256, SCHEDULES[0]),
        ("runs/window_schedule=0.5-64-0.5-256/seed=0", 256, SCHEDULES[1]),
    ]


def test_a_key_that_came_since_had_its_default(tmp_path):
    keys = {"axes": [("optimizer.beta1", (0.8, 0.9))]}
    record(sweep_of(tmp_path, **keys))
    held = json.loads((tmp_path / sweep_lib.SWEEP).read_text())
    del held["config"]["base"]["model"]["attention_gate"], held["config"]["evaluations"]
    (tmp_path / sweep_lib.SWEEP).write_text(json.dumps(held))
    sweep_of(tmp_path, **keys)  # goes on
    with pytest.raises(ConfigError, match=r"base\.model\.attention_gate: .*it has 'none'"):
        sweep_of(tmp_path, **keys, **{"base.model.attention_gate": "head"})


def test_a_cell_of_the_former_key_is_refused_by_its_new_name(tmp_path):
    with pytest.raises(ConfigError, match=f"unknown key {OLD}; is now {NEW}"):
        sweep_of(tmp_path / "new", cells=[{OLD: SCHEDULES[0]}])


@pytest.mark.parametrize("match", ["tokens", "flops"])
def test_a_cell_whose_schedule_does_not_end_at_its_window_is_refused(tmp_path, match):
    with pytest.raises(ConfigError) as error:
        sweep_of(tmp_path / "new", cells=[{NEW: SCHEDULES[1]}], match=match)
    assert error.value.key == NEW
    assert not (tmp_path / "new").exists()
