"""report.html: the answer first, a table an arm, then the figures and everything else.

The markup is `report.html.jinja`, which escapes all text; the page needs no network and no script,
can be read at phone width and follows the reader's dark mode.
"""

import pathlib
from collections.abc import Sequence

import jinja2

from hybrid.ablate.report import figures, notation, sentences, view
from hybrid.ablate.report.results import SweepResults
from hybrid.process.files import write_whole

REPORT = "report.html"
_FOLDER = pathlib.Path(__file__).parent
_NUMBERS = ("fixed", "score", "signed", "percent", "binary", "decimal", "times", "plain")


def write(results: SweepResults, folder: pathlib.Path) -> None:
    """Draws figures/*.svg and .png and writes report.html into `folder`, each whole or not at all.

    Equal results give equal bytes.
    """
    write_whole(folder / REPORT, render(results, figures.write(results, folder)))


def render(results: SweepResults, drawn: Sequence[figures.Drawn] = ()) -> str:
    """The page with the figures.  Pure."""
    loader = jinja2.FileSystemLoader(_FOLDER)
    templates = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("report.html.jinja").render(
        results=results,
        arms=view.arms(results),
        sentences=sentences.by_arm(results),
        figures=drawn,
        steps=sorted({run.num_steps for run in results.runs if run.num_steps}),
        has=lambda arm, name: any(getattr(cell, name) for cell in arm.cells),
        short=view.short,
        **{name: getattr(notation, name) for name in _NUMBERS},
    )
