"""The picture draws every layer of a segment, its repetitions, and the mask that attention uses."""

import re
from xml.etree import ElementTree

import pytest
import scripts

from hybrid.model.config import ModelConfig
from hybrid.model.mixers import MIXERS
from hybrid.model.pattern import plan_layers

figure = scripts.load("figures/pattern")
TEXT = "{http://www.w3.org/2000/svg}text"
RECT = "{http://www.w3.org/2000/svg}rect"


def draw(**changes):
    return ElementTree.fromstring(figure.render(plan_layers(ModelConfig(**changes)), "a < b"))


def texts(picture):
    return [element.text for element in picture.iter(TEXT)]


def test_a_segment_is_drawn_once_with_its_repetitions():
    words = texts(draw(num_layers=14, last_layer="force_global"))
    assert words.count("L") == 5 + 1
    assert words.count("G") == 1 + 1
    assert "LLLLLG × 2" in words
    assert "LG × 1" in words
    assert "layers 12 to 13" in words


def test_no_two_letters_have_one_colour():
    assert len({row.look.colour for row in MIXERS.values()}) == len(MIXERS)


def test_each_kind_keeps_its_colour_and_its_card():
    both, local = draw(), draw(pattern="L", num_layers=2, last_layer="any")
    fills = {rect.get("fill") for rect in local.iter(RECT)}
    assert MIXERS["L"].look.colour in fills
    assert MIXERS["G"].look.colour not in fills
    assert {"local", "global"} <= set(texts(both))
    assert "5 of 6 layers" in texts(both)
    assert "sees 64 tokens" in texts(both)


@pytest.mark.parametrize("window", [1, 3, 64])
def test_a_window_narrower_than_the_drawn_one_is_drawn_as_it_is(window):
    """The widest bar of the large mask covers the drawn window, the token itself included."""
    picture = draw(pattern="L", num_layers=1, last_layer="any", window_size=window)
    bars = [
        float(rect.get("width"))
        for rect in picture.iter(RECT)
        if rect.get("fill") == MIXERS["L"].look.colour and rect.get("fill-opacity")
    ]
    step = 180 / 24
    assert max(bars) == pytest.approx(min(window, 6) * step - 1, abs=0.01)


def test_the_picture_fits_its_frame():
    picture = draw(pattern="LLLLLLLLLLLLG", num_layers=20, last_layer="any")
    width, height = (float(size) for size in re.findall(r"\d+", picture.get("viewBox"))[2:])
    for rect in picture.iter(RECT):
        assert float(rect.get("x")) >= 0
        assert float(rect.get("x")) + float(rect.get("width")) <= width
        assert float(rect.get("y")) + float(rect.get("height")) <= height


def test_the_committed_picture_is_the_one_that_is_drawn_now():
    assert figure.OUTPUT.read_text() == figure.draw()
