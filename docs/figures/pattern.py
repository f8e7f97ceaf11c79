"""Draws docs/figures/pattern.svg, the README's picture: the pattern of configs/tiny.py.

python docs/figures/pattern.py
"""

import pathlib

from hybrid import experiment, model
from hybrid.plan import figure

OUTPUT = pathlib.Path(__file__).with_suffix(".svg")
TITLE = "Five local layers, then one global: the stack of configs/tiny.py"


def draw() -> str:
    """The picture as SVG text."""
    config = experiment.load("configs/tiny.py").model
    return figure.render(model.layer_plan(config), TITLE)


if __name__ == "__main__":
    OUTPUT.write_text(draw())
    print(OUTPUT)
