"""A pattern and a depth become the layers that run, in segments that scan."""

import dataclasses

import pytest

from hybrid.config import ConfigError
from hybrid.model.config import ModelConfig
from hybrid.model.mixers import MIXERS
from hybrid.model.mixers.rwkv7 import Rwkv7Config
from hybrid.model.pattern import layer_letters, plan_layers, segmented


def plan(**keys):
    return plan_layers(ModelConfig(**keys))


RESIDUAL = {"sections": (("rwkv7", Rwkv7Config(value_residual=True)),)}


@pytest.mark.parametrize(
    ("pattern", "depth", "rule", "letters"),
    [
        ("LLLLLG", 12, "require_global", "LLLLLGLLLLLG"),
        ("LLLLG", 35, "require_global", "LLLLG" * 7),
        ("LLLLLG", 8, "force_global", "LLLLLGLG"),
        ("LLLLLG", 8, "any", "LLLLLGLL"),
        ("L", 3, "any", "LLL"),
        ("L", 3, "force_global", "LLG"),
        ("G", 2, "require_global", "GG"),
        ("GL", 3, "require_global", "GLG"),
    ],
)
def test_pattern_repeats_and_is_cut_at_the_depth(pattern, depth, rule, letters):
    assert layer_letters(pattern, depth, rule) == letters
    assert plan(pattern=pattern, num_layers=depth, last_layer=rule).letters == letters


def test_a_local_last_layer_is_refused_naming_depths_that_fit():
    with pytest.raises(ConfigError, match=r"num_layers: .*got 8; .* 6, 12"):
        layer_letters("LLLLLG", 8)


@pytest.mark.parametrize("pattern", ["", "LLX", "l", "L?G"])
def test_letters_without_a_mixer_are_refused(pattern):
    with pytest.raises(ConfigError, match=r"^pattern: "):
        layer_letters(pattern, 6, "any")


def test_equal_periods_become_one_segment_and_the_tail_another():
    shape = [
        (segment.letters, segment.repetitions, segment.first_layer)
        for segment in plan(num_layers=14, last_layer="force_global").segments
    ]
    assert shape == [("LLLLLG", 2, 0), ("LG", 1, 12)]


def test_number_of_segments_does_not_grow_with_depth():
    assert len(plan(num_layers=60).segments) == len(plan(num_layers=12).segments) == 1


@pytest.mark.parametrize("depth", [1, 6, 13, 35])
def test_locate_is_a_bijection_that_finds_each_layers_spec(depth):
    layers = plan(num_layers=depth, last_layer="any")
    places = [layers.locate(layer) for layer in range(depth)]
    assert len(set(places)) == depth
    for layer, (place, spec) in enumerate(zip(places, layers.layers(), strict=True)):
        segment = layers.segments[place.segment]
        assert segment.depths(place.run)[place.row] == layer
        assert segment.runs[place.run].spec == spec
    with pytest.raises(IndexError):
        layers.locate(depth)


def with_reuse(depth, period, first_reusing):
    """Specs of a stack whose layers from `first_reusing` reuse the last own layer of their kind."""
    specs = list(
        plan(pattern="L" * (period - 1) + "G", num_layers=depth, last_layer="any").layers()
    )
    donors = {specs[layer].letter: layer for layer in range(first_reusing)}
    for layer in donors.values():
        specs[layer] = with_mixer(specs[layer], donates=True)
    for layer in range(first_reusing, depth):
        specs[layer] = with_mixer(specs[layer], donor=donors[specs[layer].letter])
    return tuple(specs)


def with_mixer(spec, **change):
    return dataclasses.replace(spec, mixer=dataclasses.replace(spec.mixer, **change))


@pytest.mark.parametrize("first_reusing", [15, 17, 20])
def test_donors_end_a_segment_before_those_who_reuse_their_keys(first_reusing):
    specs = with_reuse(35, 5, first_reusing)
    layers = segmented(specs, 5)
    assert tuple(layers.layers()) == specs
    assert not any(
        len({spec.mixer.owns_kv for spec in segment.specs}) == 2 for segment in layers.segments
    )
    for layer, spec in enumerate(specs):
        if not spec.mixer.owns_kv:
            donor = layers.locate(spec.mixer.donor)
            assert donor.segment < layers.locate(layer).segment
            assert layers.segments[donor.segment].repetitions == 1


def test_published_depths_with_reuse_stay_few_segments():
    assert [s.repetitions for s in segmented(with_reuse(35, 5, 15), 5).segments] == [2, 1, 4]
    assert [s.repetitions for s in segmented(with_reuse(42, 6, 24), 6).segments] == [3, 1, 3]


def test_layers_that_read_the_first_of_their_letter_stand_behind_it():
    layers = plan(pattern="WLG", num_layers=12, **RESIDUAL)
    assert [(s.letters, s.repetitions) for s in layers.segments] == [("WLG", 1), ("WLG", 3)]
    assert [mixer.donor for mixer in layers.mixers()] == [None] * 3 + [0, None, None] * 3


@pytest.mark.parametrize(("pattern", "shared"), [("WLLG", 2), ("WLLG", 1), ("WWLLG", 3)])
def test_layers_stand_behind_each_of_several_donors(pattern, shared):
    """Values of the first, and keys and values of a donor that is of the readers' own period."""
    num_layers = 4 * len(pattern)
    layers = plan(pattern=pattern, num_layers=num_layers, num_kv_shared_layers=shared, **RESIDUAL)
    donors = [mixer.donor for mixer in layers.mixers()]
    assert donors[-shared:] != [None] * shared
    for layer, donor in enumerate(donors):
        if donor is not None:
            place = layers.locate(donor)
            assert place.segment < layers.locate(layer).segment
            assert layers.segments[place.segment].repetitions == 1


def test_layers_of_a_kind_have_that_kinds_geometry():
    layers = plan(
        num_heads=8,
        num_kv_heads=4,
        num_global_kv_heads=2,
        head_dim=32,
        global_head_dim=64,
        unified_kv=True,
        window_sizes=(8, 16, 32, 64, 128, 0),
    )
    local, *_, full = (spec.mixer for spec in layers.layers())
    assert (local.window_size, local.num_kv_heads, local.head_dim, local.unified_kv) == (
        8,
        4,
        32,
        False,
    )
    assert (full.window_size, full.num_kv_heads, full.head_dim, full.unified_kv) == (
        None,
        2,
        64,
        True,
    )
    assert (local.rope.theta, local.rope.fraction) == (10_000, 1)
    assert (full.rope.theta, full.rope.fraction) == (1_000_000, 0.25)
    assert [spec.mixer.window_size for spec in layers.layers()] == [8, 16, 32, 64, 128, None]


STATE = [letter for letter, row in MIXERS.items() if row.kind == "state"]


@pytest.mark.parametrize("letter", STATE)
def test_a_state_has_no_window(letter):
    plan(pattern=f"L{letter}G", num_layers=3, window_sizes=(8, 0, 0))
    with pytest.raises(ConfigError, match=f"^window_sizes: must be 0 at a {letter}, got "):
        plan(pattern=f"L{letter}G", num_layers=3, window_sizes=(8, 8, 0))


# --- Layers that reuse keys and values -------------------------------------------------------


def shapes(layers):
    return [(segment.letters, segment.repetitions) for segment in layers.segments]


def donors(layers):
    return [spec.mixer.donor for spec in layers.layers()]


def test_the_last_layers_reuse_the_last_owner_of_their_kind():
    e2b = plan(pattern="LLLLG", num_layers=35, num_kv_shared_layers=20, kv_shared_ffn_dim=1024)
    assert shapes(e2b) == [("LLLLG", 2), ("LLLLG", 1), ("LLLLG", 4)]
    assert donors(e2b) == [None] * 15 + [13, 13, 13, 13, 14] * 4
    assert [i for i, spec in enumerate(e2b.layers()) if spec.mixer.donates] == [13, 14]
    assert {spec.ffn_dim for spec in e2b.layers() if not spec.mixer.owns_kv} == {1024}
    assert {spec.ffn_dim for spec in e2b.layers() if spec.mixer.owns_kv} == {512}


def test_reuse_may_begin_inside_a_period():
    inside = plan(num_layers=24, num_kv_shared_layers=10)
    assert shapes(inside) == [("LLLLLG", 1), ("LLLLLG", 1), ("LL", 1), ("LLLG", 1), ("LLLLLG", 1)]
    assert donors(inside) == [None] * 14 + [13, 13, 13, 11] + [13] * 5 + [11]


def test_reuse_without_an_owner_of_the_kind_is_refused():
    with pytest.raises(ConfigError, match=r"num_kv_shared_layers: leaves no global layer"):
        plan(num_layers=12, num_kv_shared_layers=7)
    with pytest.raises(ConfigError, match=r"num_kv_shared_layers: must leave an owner"):
        plan(num_layers=12, num_kv_shared_layers=12)
