"""The parts of the benchmarks that decide whether a comparison is fair; nothing is timed here."""

import jax
import numpy as np
import pytest

from benchmarks import (
    cache_dtype,
    decode,
    machine,
    same_tasks,
    same_values,
    train_step,
    versions,
)
from benchmarks.model import MODEL, NUM_PARAMS, Shape, peer_weights, shaken, tokens
from hybrid import model
from hybrid.data.batch import Batch


@pytest.fixture(scope="module")
def params():
    return shaken(jax.jit(lambda: model.init(MODEL, jax.random.key(0)))())


def test_peer_gets_every_parameter_once(params):
    weights = peer_weights(params)
    trained = {name: w for name, w in weights.items() if not name.endswith("layer_scalar")}
    assert sum(w.size for w in trained.values()) == NUM_PARAMS
    ours = np.sort(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]))
    theirs = np.sort(np.concatenate([np.ravel(w) for w in weights.values()]))
    np.testing.assert_array_equal(ours, theirs)


def test_global_layer_has_no_value_projection(params):
    names = peer_weights(params)
    assert "model.layers.4.self_attn.v_proj.weight" in names
    assert "model.layers.5.self_attn.v_proj.weight" not in names
    assert names["model.layers.5.self_attn.q_proj.weight"].shape == (4 * 128, 256)
    assert names["model.layers.0.self_attn.o_proj.weight"].shape == (256, 4 * 64)


def test_no_norm_or_scalar_keeps_its_start(params):
    weights = peer_weights(params)
    assert not np.any(weights["model.norm.weight"] == 1)
    scalars = [w for name, w in weights.items() if name.endswith("layer_scalar")]
    assert len(np.unique(scalars)) == MODEL.num_layers


def test_tokens_avoid_the_padding_id_and_repeat_exactly():
    first = tokens(Shape(2, 64))
    assert first.min() >= 1
    assert first.max() < MODEL.vocab_size
    np.testing.assert_array_equal(first, tokens(Shape(2, 64)))


@pytest.mark.parametrize("losses", [[9.0002, 7.0], [9.0, 7.01]])
def test_different_losses_stop_the_comparison(losses):
    rows = {train_step.OURS: {"losses": [9.0, 7.0]}, "peer": {"losses": losses}}
    with pytest.raises(AssertionError, match="losses differ"):
        train_step._check_losses(rows)


def test_disturbed_readings_count_only_where_no_quiet_one_exists():
    shape = Shape(1, 100)
    row = {"readings": [(0.5, 0.4), (1.0, 0.01), (2.0, 0.0)]}
    summary = train_step._summary(row, shape, flops=1e9)
    assert summary["tokens_per_second"] == 100
    assert summary["quiet"] == 2
    assert train_step._summary({"readings": [(0.5, 0.4)]}, shape, 1e9)["tokens_per_second"] == 200


def test_ratio_is_to_the_fastest_peer():
    speeds = {train_step.OURS: 300, train_step.SDPA: 100, train_step.COMPILED: 150}
    rows = [
        {"task": "16x512", "side": side, "tokens_per_second": speed}
        for side, speed in speeds.items()
    ]
    assert train_step.ratios({"rows": rows}) == {"16x512": 2.0}


def test_table_is_markdown():
    assert machine.table(("a", "b"), [(1, 2)]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_sides_that_go_on_differently_are_not_timed():
    rows = {name: {"tokens": [[1, 2]]} for name in decode.SIDES}
    decode.check_tokens(rows)
    rows[decode.COMPILED] = {"tokens": [[1, 3]]}
    with pytest.raises(AssertionError, match="go on differently"):
        decode.check_tokens(rows)


def test_decoding_is_compared_with_the_fastest_peer():
    speeds = dict(zip(decode.SIDES, (300, 400, 350, 100, 200), strict=True))
    rows = [
        {"task": "1x2048", "side": side, "tokens_per_second": speed}
        for side, speed in speeds.items()
    ]
    assert decode.ratios({"rows": rows}) == {"1x2048": (2.0, 1.5)}


def test_a_moved_distribution_shows_in_the_buckets_it_is_in():
    """Two positions: at the first nothing moves, at the second ln 2 goes from one token to two."""
    exact = np.log([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]])
    other = exact.copy()
    other[0, 1] = np.log([0.25, 0.5, 0.25])
    batch = Batch(*(np.array([row]) for row in ([1, 2], [0, 0], [1, 1], [0, 1], [True, True])))
    first, second, whole = cache_dtype.compare([exact], [other], [batch], 2)
    assert (first["kl"], first["same_top"], first["perplexity_change"]) == (0, 1, 0)
    assert second["kl"] == pytest.approx(0.5 * np.log(2) - 0.25 * np.log(2))
    assert second["same_top"] == 0
    assert second["perplexity_change"] == pytest.approx(1)
    assert whole["perplexity_change"] == pytest.approx(2**0.5 - 1)
    assert (whole["start"], whole["end"], whole["num_tokens"]) == (0, 2, 2)


def files(folder, loss=0.1, array=(1.0, 2.0)):
    """A folder as a task leaves it."""
    (folder / "run").mkdir(parents=True)
    row = f'{{"step": 1, "loss": {loss}, "tokens_per_second": {hash(folder)}}}\n'
    (folder / "run" / "metrics.jsonl").write_text(row)
    (folder / "eval.txt").write_text(f"model {folder}/run\n")
    (folder / "empty.txt").write_text("")
    np.save(folder / "eval.npy", np.float32(array))
    return folder


def first_differences(old, new):
    found = [same_values.found(folder, [old, new]) for folder in (old, new)]
    compared = {name: same_values.compare(found[0][name], found[1][name]) for name in found[0]}
    return {name: difference for name, difference in compared.items() if difference}


def test_folders_and_speeds_may_differ_between_versions(tmp_path):
    old, new = files(tmp_path / "old"), files(tmp_path / "new")
    assert first_differences(old, new) == {}
    assert list(same_values.found(old, [])) == ["eval.npy", "eval.txt", "run/metrics.jsonl"]


def test_the_last_bit_of_a_row_or_an_array_is_a_difference(tmp_path):
    old = files(tmp_path / "old")
    nearly = float(np.nextafter(np.float32(2), np.float32(3)))
    new = files(tmp_path / "new", loss=np.nextafter(0.1, 1), array=(1.0, nearly))
    assert first_differences(old, new) == {
        "eval.npy": "array: 1 of 2 differ, first entry 1: 2.0, now 2.0000002",
        "run/metrics.jsonl": "line 1, step 1 loss: 0.1, now 0.10000000000000002",
    }


def test_a_value_that_only_one_version_has_is_a_difference():
    assert "only in the old" in same_values.compare({"a": 1, "b": 2}, {"a": 1})
    assert "only in the new" in same_values.compare({"a": 1}, {"a": 1, "b": 2})
    assert same_values.compare({"a": 0.0}, {"a": -0.0})
    assert same_values.compare({"a": np.float32(0)}, {"a": np.float64(0)})


def test_a_task_brings_the_task_whose_files_it_reads():
    assert same_tasks.with_needed(["resume_lora", "mqar"]) == ["demo", "mqar", "resume_lora"]


def test_a_version_is_faster_where_its_best_quiet_reading_is():
    old = versions.summary(100, [(1.0, 0.0), (2.0, 0.0), (0.1, 0.5)])
    new = versions.summary(100, [(0.5, 0.0), (2.0, 0.0), (4.0, 0.0)])
    assert versions.ratios({"old": old, "new": new}) == (2.0, 0.5)
