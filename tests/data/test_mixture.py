"""Sources in exact proportions: which row is of which source, and that it is that source's row."""

import contextlib
import dataclasses
import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.config import ConfigError
from hybrid.data import pipeline
from hybrid.data.config import DataConfig, MixtureSource
from hybrid.data.mixture import exact, mixture_of
from hybrid.data.store.prepare import prepare

WEIGHTS = st.integers(0, 1000).map(lambda n: Fraction(n, 1000))


def shares(weights):
    total = sum(weights)
    return [weight / total for weight in weights]


def of_weights(*weights):
    return mixture_of([(0, weights)], [None] * len(weights))


# --- Counting ----------------------------------------------------------------------------------


def test_three_sources_are_exact_at_every_multiple_of_ten_rows():
    mixture = of_weights(*map(exact, (0.7, 0.2, 0.1)))
    sources = [mixture.place(row)[0] for row in range(10_000)]
    for tens in range(1, 1001):
        assert np.bincount(sources[: 10 * tens], minlength=3).tolist() == [
            7 * tens,
            2 * tens,
            tens,
        ]
    assert mixture.counts(10**18) == [7 * 10**17, 2 * 10**17, 10**17]
    assert mixture.place(10**18)[1] in (7 * 10**17, 2 * 10**17, 10**17)


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=9).filter(any), first=st.integers(0, 10**6))
def test_every_row_is_the_next_one_of_one_source_and_no_source_runs_ahead(weights, first):
    mixture, parts = of_weights(*weights), shares(weights)
    counts = mixture.counts(first)
    most = {1: 0, 2: Fraction(1, 2), 3: 1}.get(sum(map(bool, weights)), Fraction(168, 100))
    for row in range(first, first + 50):
        source, own = mixture.place(row)
        assert own == counts[source]
        counts[source] += 1
        assert counts == mixture.counts(row + 1)
        off = [abs(count - (row + 1) * part) for count, part in zip(counts, parts, strict=True)]
        assert max(off) <= most
    period = 1000 * sum(weights).numerator  # a multiple of every part's denominator
    at_once = mixture.counts(int(period))
    assert at_once == [period * part for part in parts]


def test_more_sources_stay_closer_than_one_after_the_other_would():
    many = of_weights(*[Fraction(1)] * 64)
    off = [abs(c - Fraction(n, 64)) for n in range(640) for c in many.counts(n)]
    assert max(off) < 1


CHANGES = st.lists(st.tuples(st.integers(1, 60), st.lists(WEIGHTS, min_size=3, max_size=3)),
                   max_size=3, unique_by=lambda change: change[0])  # fmt: skip
CAPS = st.lists(st.one_of(st.none(), st.integers(1, 40)), min_size=3, max_size=3)


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(WEIGHTS, min_size=3, max_size=3).filter(any), changes=CHANGES, caps=CAPS)
def test_stages_count_on_and_end_where_every_source_is_used_up(weights, changes, caps):
    changes = sorted((row, of) for row, of in changes if any(of))
    mixture = mixture_of([(0, weights), *changes], caps)
    counts = [0, 0, 0]
    end = 150 if mixture.num_rows is None else mixture.num_rows
    for row in range(min(end, 150)):
        assert mixture.counts(row) == counts
        source, own = mixture.place(row)
        now = [of for first, of in [(0, weights), *changes] if first <= row][-1]
        assert now[source] > 0
        assert own == counts[source]
        counts[source] += 1
        assert caps[source] is None or counts[source] <= caps[source]
    if mixture.num_rows is not None:  # those with a weight there have no row left
        now = [of for first, of in [(0, weights), *changes] if first <= end][-1]
        assert all(
            cap is not None and had == cap
            for had, cap, weight in zip(mixture.counts(end), caps, now, strict=True)
            if weight
        )


def test_what_a_source_leaves_goes_to_the_others_by_their_weights():
    mixture = mixture_of([(0, (Fraction(6), Fraction(3), Fraction(1)))], [12, None, None])
    assert mixture.counts(20) == [12, 6, 2]
    assert mixture.counts(20 + 40) == [12, 6 + 30, 2 + 10]


def test_a_schedule_begins_at_its_row_and_changes_none_before():
    plain = of_weights(Fraction(1), Fraction(3))
    changed = mixture_of([(0, (Fraction(1), Fraction(3))), (40, (Fraction(3), Fraction(1)))],
                         [None, None])  # fmt: skip
    assert [changed.place(r) for r in range(40)] == [plain.place(r) for r in range(40)]
    assert changed.counts(80) == [10 + 30, 30 + 10]


# --- Rows --------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    for name, letters in (("a", b"abc"), ("b", b"def"), ("c", b"ghi")):
        (tmp_path / name).mkdir()
        for i in range(20):
            text = rng.choice(list(letters), int(rng.integers(20, 200))).astype(np.uint8)
            (tmp_path / name / f"{i}.txt").write_bytes(text.tobytes())
    mixture = tuple(
        MixtureSource(name=name, weight=weight, paths=(f"{tmp_path}/{name}/*.txt",))
        for name, weight in (("a", 0.7), ("b", 0.2), ("c", 0.1))
    )
    return DataConfig(mixture=mixture, cache_dir=str(tmp_path / "cache"), eval_fraction=0.2)


def with_source(config, index, **keys):
    changed = list(config.mixture)
    changed[index] = dataclasses.replace(changed[index], **keys)
    return dataclasses.replace(config, mixture=tuple(changed))


def open_rows(config, **keys):
    return pipeline.open_rows(config, **{"context_length": 16, "seed": 0, "vocab_size": 259} | keys)


def take(rows, count, *arguments):
    with contextlib.closing(rows.batches(*arguments)) as batches:
        return list(itertools.islice(batches, count))


def test_rows_are_those_that_each_source_gives_alone(config):
    rows = open_rows(config)
    alone = [open_rows(part) for part in config.parts]
    had = [0, 0, 0]
    for row in map(rows.row, range(100)):
        (source,) = np.flatnonzero(row["is_of_source"])
        own = alone[source].row(had[source])
        np.testing.assert_array_equal(row["tokens"], own["tokens"])
        np.testing.assert_array_equal(row["loss_mask"], own["loss_mask"])
        had[source] += 1
    assert had == [70, 20, 10]


def test_any_number_of_processes_gives_the_same_rows_from_any_row_on(config):
    alone = take(open_rows(config), 6, 0, 4)
    assert alone[0].is_of_source.shape == (4, 3)
    for count in (1, 2, 4):
        own = [range(4)[index * 4 // count : (index + 1) * 4 // count] for index in range(count)]
        rows = open_rows(config)  # as a start does that goes on at row 12
        parts = [take(rows, 3, 12, 4, part) for part in own]
        for number, batch in enumerate(alone[3:]):
            for name in ("tokens", "is_of_source"):
                joined = np.concatenate([getattr(part[number], name) for part in parts])
                np.testing.assert_array_equal(joined, getattr(batch, name))


def test_epochs_end_a_source_after_so_many_rows_and_a_schedule_counts_steps(config):
    num_rows = open_rows(config.parts[2]).num_rows
    capped = open_rows(with_source(config, 2, epochs=0.5))
    cap = -(-num_rows // 2)
    assert capped.end is None
    assert capped.source.mixture.counts(40 * num_rows)[2] == cap
    steps = dataclasses.replace(config, mixture_schedule=((5, (0.0, 0.0, 1.0)),))
    assert open_rows(steps, batch_size=4).source.mixture.counts(30) == [14, 4, 12]
    every = dataclasses.replace(
        config, mixture=tuple(dataclasses.replace(s, epochs=1.0) for s in config.mixture)
    )
    rows = open_rows(every)
    assert rows.end == sum(open_rows(part).num_rows for part in config.parts) == rows.num_rows


def test_everything_that_decides_the_order_is_in_the_fingerprint(config):
    others = [
        config,
        with_source(config, 0, weight=0.6),
        with_source(config, 0, epochs=1.0),
        with_source(config, 0, packing="document"),
        dataclasses.replace(config, mixture=config.mixture[::-1]),
        dataclasses.replace(config, mixture_schedule=((9, (1.0, 1.0, 1.0)),)),
    ]
    assert len({open_rows(other).fingerprint for other in others}) == len(others)
    renamed = with_source(config, 0, name="first")
    assert open_rows(renamed).fingerprint == open_rows(config).fingerprint


def test_a_prepared_store_is_a_source_like_its_text(config, tmp_path):
    encoder, _ = pipeline.encoder_of(config, 259)
    alone = dataclasses.replace(config.parts[1], eval_fraction=0.3)
    prepare(alone, encoder, tmp_path / "store", vocab_size=259, num_workers=0)
    keys = {"source": "prepared", "paths": (str(tmp_path / "store"),)}
    rows = open_rows(with_source(config, 1, **keys))
    own = open_rows(DataConfig(**keys))
    row = next(row for row in map(rows.row, range(9)) if row["is_of_source"][1])
    np.testing.assert_array_equal(row["tokens"], own.row(0)["tokens"])
    held_out = pipeline.open_held_out(with_source(config, 1, **keys), vocab_size=259)
    assert list(held_out.by_source) == ["a", "b", "c"]
    own_held_out = pipeline.open_held_out(DataConfig(**keys), vocab_size=259)
    assert held_out.by_source["b"].fingerprint == own_held_out.fingerprint


@pytest.mark.parametrize("keys", [{"paths": ("none.txt",)}, {"eval_paths": ("none.txt",)}])
def test_a_wrong_source_is_named_and_no_other_is_written(config, tmp_path, keys):
    wrong = with_source(config, 2, **keys)
    (key,) = keys
    message = rf"^data\.mixture\[2\]\.{key}: no such file"
    for call in (open_rows, lambda c: pipeline.open_held_out(c, vocab_size=259)):
        with pytest.raises(ConfigError, match=message):
            call(wrong)
    assert not (tmp_path / "cache").exists()


def test_text_of_another_source_that_breaks_its_form_is_named(config, tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"body": "a"}) + "\n")
    wrong = with_source(config, 1, source="jsonl", paths=(str(tmp_path / "x.jsonl"),))
    with pytest.raises(ConfigError, match=r"^data\.mixture\[1\]\.text_field: "):
        open_rows(wrong)
