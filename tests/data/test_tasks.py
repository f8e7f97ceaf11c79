"""Examples of tasks are exactly as described, the same wherever they are made, and cheap."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.config import ConfigError, build
from hybrid.data import pipeline
from hybrid.data.config import DataConfig, MqarConfig, NeedleConfig
from hybrid.data.tasks import Examples
from hybrid.data.tasks.example import Draws
from hybrid.experiment import Experiment

QUICK = settings(derandomize=True, deadline=None, max_examples=60)
FIELDS = ("tokens", "targets", "segment_ids", "positions", "loss_mask")


def mqar(length=64, vocab_size=256, split="train", **keys):
    return Examples("mqar", MqarConfig(**keys), split, length, vocab_size)


def needle(length=64, vocab_size=64, split="train", **keys):
    return Examples("needle", NeedleConfig(**keys), split, length, vocab_size)


# --- Associative recall ----------------------------------------------------------------------


@QUICK
@given(
    num_pairs=st.integers(1, 9), extra=st.integers(0, 20), spare=st.integers(1, 300),
    index=st.integers(0, 10**9), power=st.sampled_from([0.01, 0.5, 1.0]),
)  # fmt: skip
def test_mqar_rows_are_pairs_then_each_key_once_with_its_value_as_label(
    num_pairs, extra, spare, index, power
):
    length = 4 * num_pairs + 2 * extra
    vocab_size = length + spare
    example = mqar(length, vocab_size, num_pairs=(num_pairs,), power=power).example(index)
    half, block = vocab_size // 2, 2 * num_pairs
    keys, values = example.tokens[:block:2].tolist(), example.tokens[1:block:2].tolist()
    assert len(set(keys)) == len(set(values)) == num_pairs
    assert all(1 <= key < half for key in keys)
    assert all(half <= value < vocab_size for value in values)
    rest = example.tokens[block:]
    asked = np.flatnonzero(rest)
    assert sorted(rest[asked].tolist()) == sorted(keys)
    assert not (asked % 2).any()
    assert example.asked.tolist() == (asked + block).tolist()
    labels = dict(zip(keys, values, strict=True))
    expected = [labels.get(token, 0) for token in rest.tolist()]
    assert example.targets.tolist() == [0] * block + expected
    for place, distance in zip(example.asked, example.distance, strict=True):
        assert example.tokens[place - distance] == example.targets[place]
        assert place - distance == 2 * keys.index(example.tokens[place]) + 1
    assert example.num_pairs == num_pairs


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_mqar_slots_follow_the_power_law(power):
    """Of one pair: the slot itself. Of two: the first drawn has the law, and then the second."""
    rows, slots = 2500, 6
    weights = power * np.arange(1, slots + 1) ** (power - 1)
    weights /= weights.sum()
    alone = [mqar(2 + 2 * slots, num_pairs=(1,), power=power).example(i) for i in range(rows)]
    places = np.array([(example.asked[0] - 2) // 2 for example in alone])
    found = np.bincount(places, minlength=slots) / rows
    assert np.abs(found - weights).max() < 4 * 0.5 / np.sqrt(rows)

    both = np.zeros((slots, slots))
    for i in range(rows):
        example = mqar(4 + 2 * slots, num_pairs=(2,), power=power).example(i)
        at = {example.tokens[place]: (place - 4) // 2 for place in example.asked}
        both[at[example.tokens[0]], at[example.tokens[2]]] += 1 / rows
    expected = weights[:, None] * weights[None, :] / (1 - weights[:, None])
    np.fill_diagonal(expected, 0)
    assert np.abs(both - expected).max() < 4 * 0.5 / np.sqrt(rows)


def test_mqar_keys_and_values_are_uniform():
    count = np.zeros(40)
    for i in range(2000):
        count[mqar(16, 40, num_pairs=(3,)).example(i).tokens[:6]] += 1
    assert count[0] == 0
    assert np.abs(count[1:20] / 6000 - 1 / 19).max() < 0.016
    assert np.abs(count[20:] / 6000 - 1 / 20).max() < 0.016


def test_mqar_rows_take_the_numbers_of_pairs_in_turn():
    examples = mqar(64, num_pairs=(2, 8, 4), num_examples=10)
    assert [examples.example(i).num_pairs for i in range(5)] == [2, 8, 4, 2, 8]
    rows = [examples.row(i) for i in range(10)]
    assert sum(int(row["loss_mask"].sum()) for row in rows) == examples.num_predicted == 44


def test_mqar_filler_is_0_or_any_id():
    plain, random = (mqar(random_filler=on).example(3) for on in (False, True))
    assert np.count_nonzero(plain.tokens) == 4 * 3
    assert np.count_nonzero(random.tokens) > 50
    for name in ("targets", "asked", "distance"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(random, name))
    assert (random.tokens[plain.tokens > 0] == plain.tokens[plain.tokens > 0]).all()


# --- Needles ---------------------------------------------------------------------------------


@QUICK
@given(
    length=st.integers(3, 70), num_keys=st.integers(1, 20), num_values=st.integers(2, 20),
    num_filler=st.integers(2, 9), index=st.integers(0, 10**9), data=st.data(),
)  # fmt: skip
def test_the_value_stands_exactly_distance_tokens_before_the_asking_key(
    length, num_keys, num_values, num_filler, index, data
):
    distance = data.draw(st.integers(0, length - 2))
    vocab_size = 1 + num_keys + num_values + num_filler
    keys = {"distances": (distance,), "num_keys": num_keys, "num_values": num_values}
    example = needle(length, vocab_size, **keys).example(index)
    found = int(example.distance[0])
    assert found == distance or (not distance and 1 <= found <= length - 2)
    place = length - 1 - found
    asked, value = example.tokens[-1], example.tokens[place]
    assert 1 <= asked <= num_keys < value <= num_keys + num_values
    assert example.tokens[place - 1] == asked
    filler = np.delete(example.tokens, [place - 1, place, length - 1])
    assert (filler > num_keys + num_values).all()
    assert (filler < vocab_size).all()
    assert example.targets.tolist() == [0] * (length - 1) + [value]
    assert (example.asked.tolist(), example.num_pairs) == ([length - 1], 1)


def test_distance_0_is_drawn_from_all_that_fit():
    examples = needle(12, distances=(0,))
    found = [int(examples.example(i).distance[0]) for i in range(2000)]
    assert set(found) == set(range(1, 11))
    assert np.abs(np.bincount(found)[1:] / 2000 - 0.1).max() < 0.03


def test_needles_take_the_distances_in_turn_and_differ_in_nothing_else():
    examples = needle(distances=(5, 0, 30))
    assert [int(examples.example(i).distance[0]) for i in (0, 2, 3, 5)] == [5, 30, 5, 30]
    near, far = (needle(distances=(d,)).example(7) for d in (3, 40))
    assert near.targets.tolist() == far.targets.tolist()
    assert (near.tokens != far.tokens).sum() == 4


def test_keys_values_and_filler_are_uniform():
    count = np.zeros(12)
    for i in range(1500):
        np.add.at(count, needle(6, 12, num_keys=3, num_values=4).example(i).tokens, 1)
    assert count[0] == 0
    assert np.abs(count[1:4] / 3000 - 1 / 3).max() < 0.04
    assert np.abs(count[4:8] / 1500 - 1 / 4).max() < 0.045
    assert np.abs(count[8:] / 4500 - 1 / 4).max() < 0.03


# --- What both share -------------------------------------------------------------------------

BOTH = [mqar, needle]


@pytest.mark.parametrize("task", BOTH)
def test_an_example_depends_on_nothing_but_split_and_number(task):
    train, again, held_out = task(), task(), task(split="eval")
    later = [train.example(i) for i in range(20)]
    for i in reversed(range(20)):
        np.testing.assert_array_equal(again.example(i).tokens, later[i].tokens)
    pairs = itertools.product(range(20), repeat=2)
    same = [(i, j) for i, j in pairs if (train.row(i)["tokens"] == held_out.row(j)["tokens"]).all()]
    assert not same
    assert len({row.tokens.tobytes() for row in later}) == 20
    assert (train.num_rows, held_out.num_rows) == (100_000, 1000)


def test_drawn_numbers_are_the_same_everywhere():
    """What follows from Philox and the key; a change here is another data set: raise FORMAT."""
    assert Draws("1 needle train", 3).integers(5, 0, 1000).tolist() == [846, 890, 434, 571, 642]
    assert Draws("1 needle train", 3).distinct(5, 10, 16).tolist() == [15, 10, 13, 14, 11]
    assert needle(10, distances=(4,)).example(0).tokens.tolist() == [
        34,
        44,
        49,
        39,
        5,
        17,
        57,
        59,
        51,
        5,
    ]
    assert mqar(8, 32, num_pairs=(2,)).example(0).tokens.tolist() == [8, 20, 14, 19, 14, 0, 8, 0]


def open_rows(source, **keys):
    arguments = {"context_length": 16, "seed": 0, "vocab_size": 64} | keys
    config = DataConfig(source=source, mqar=MqarConfig(num_pairs=(2, 3)))
    return pipeline.open_rows(config, **arguments)


def take(rows, count, *arguments):
    with contextlib.closing(rows.batches(*arguments)) as batches:
        return list(itertools.islice(batches, count))


@pytest.mark.parametrize("source", ["mqar", "needle"])
def test_batches_are_the_same_for_any_number_of_processes_and_from_any_row_on(source):
    rows = open_rows(source)
    whole = take(rows, 6, 0, 4)
    for name in FIELDS:
        got = np.concatenate([getattr(batch, name) for batch in whole])
        np.testing.assert_array_equal(got, [rows.row(r)[name] for r in range(24)])
    for count in (2, 4):
        own = [range(4)[index * 4 // count : (index + 1) * 4 // count] for index in range(count)]
        shares = [take(open_rows(source), 3, 12, 4, part) for part in own]
        for number, batch in enumerate(whole[3:]):
            joined = np.concatenate([share[number].tokens for share in shares])
            np.testing.assert_array_equal(joined, batch.tokens)
    kinds = {name: getattr(whole[0], name).dtype for name in FIELDS}
    assert kinds == dict.fromkeys(FIELDS[:4], np.dtype("int32")) | {"loss_mask": np.dtype(bool)}


@pytest.mark.parametrize("source", ["mqar", "needle"])
def test_the_seed_orders_the_same_examples_and_the_keys_decide_them(source):
    rows = open_rows(source)
    other_seed, longer = open_rows(source, seed=1), open_rows(source, context_length=18)
    larger = open_rows(source, vocab_size=66)
    assert other_seed.fingerprint == rows.fingerprint
    assert len({one.fingerprint for one in (rows, longer, larger)}) == 3
    assert any((rows.row(r)["tokens"] != other_seed.row(r)["tokens"]).any() for r in range(5))
    assert rows.description.startswith(f"{source} (train): 100,000 examples")
    assert rows.source.num_predicted == (250_000 if source == "mqar" else 100_000)


@pytest.mark.parametrize("source", ["mqar", "needle"])
def test_what_is_held_out_is_the_evaluations_examples_at_any_length(source):
    config = DataConfig(source=source)
    held_out = pipeline.open_held_out(config, vocab_size=64, context_length=16)
    assert (held_out.split, held_out.num_rows) == ("eval", 1000)
    longer = held_out.at(32)
    assert len(longer.example(0).tokens) == 32
    assert longer.fingerprint != held_out.fingerprint


@pytest.mark.parametrize(
    ("task", "keys", "key"),
    [
        (mqar, {"length": 15}, "training.context_length"),
        (mqar, {"length": 17}, "training.context_length"),
        (mqar, {"num_pairs": (2, 17)}, "training.context_length"),
        (mqar, {"length": 17, "split": "eval"}, "eval.context_length"),
        (mqar, {"vocab_size": 64}, "model.vocab_size"),
        (needle, {"distances": (5, 63)}, "training.context_length"),
        (needle, {"length": 2}, "training.context_length"),
        (needle, {"distances": (5, 63), "split": "eval"}, "eval.context_length"),
        (needle, {"vocab_size": 34}, "model.vocab_size"),
        (needle, {"vocab_size": 50, "num_values": 32}, "model.vocab_size"),
    ],
)
def test_what_does_not_fit_is_refused_by_key_and_the_remedy_fits(task, keys, key):
    with pytest.raises(ConfigError) as caught:
        task(**keys)
    assert caught.value.key == key
    needed = caught.value.accepted
    if needed.startswith("at least "):
        name = {"model.vocab_size": "vocab_size"}.get(key, "length")
        number = int(needed.removeprefix("at least "))
        task(**keys | {name: number})
        with pytest.raises(ConfigError):
            task(**keys | {name: number - 1})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"source": "mqar", "paths": ["x"]}, "data.paths"),
        ({"source": "needle", "eval_paths": ["x"]}, "data.eval_paths"),
        ({"mqar": {"num_pairs": []}}, "data.mqar.num_pairs"),
        ({"mqar": {"num_pairs": [4, 0]}}, "data.mqar.num_pairs"),
        ({"mqar": {"power": 0}}, "data.mqar.power"),
        ({"needle": {"distances": []}}, "data.needle.distances"),
        ({"needle": {"num_values": 1}}, "data.needle.num_values"),
        ({"needle": {"num_vales": 1}}, "data.needle.num_vales"),
    ],
)
def test_wrong_keys_are_refused_by_their_dotted_name(values, key):
    with pytest.raises(ConfigError) as caught:
        build(Experiment, {"data": values})
    assert caught.value.key == key
