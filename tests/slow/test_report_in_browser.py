"""The report fits a real browser's window at desktop and phone width, and clips no label.

The page is put into a frame of the width (headless Chromium's own windows are 500 pixels wide at
least), and a script beside it measures the frame and writes what it finds into the document.
With HYBRID_SCREENSHOTS=FOLDER the test also leaves pictures there, to be looked at.
"""

import html
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from ablate import example_results
from ablate.from_json import sweep_results

from hybrid.ablate.report import page

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
WIDTHS = {"desktop": (1440, 900), "phone": (390, 844)}
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
_PAINT = "--run-all-compositor-stages-before-draw"
_MEASURE = """
const frame = document.querySelector("iframe"), found = document.querySelector("pre");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, root = page.documentElement;
  const outside = [...page.querySelectorAll("svg text")].filter((text) => {
    const inner = text.getBoundingClientRect();
    const outer = text.closest("svg").getBoundingClientRect();
    return inner.left < outer.left - 1 || inner.right > outer.right + 1
      || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
  });
  const top = (selector) => page.querySelector(selector)?.getBoundingClientRect().top ?? null;
  found.textContent = JSON.stringify({
    width: root.clientWidth, scrolls: root.scrollWidth, clipped: outside.map((t) => t.textContent),
    answer: top(".answer"), table: top("table"), figures: page.querySelectorAll("figure").length,
  });
});
frame.srcdoc = document.querySelector("textarea").textContent;
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here (apt-get install chromium)"),
]


def framed(content: str, width: int, height: int) -> str:
    """A page that shows `content` in a frame of that size and measures it."""
    size = f"border:0;width:{width}px;height:{height}px"
    return (
        '<!doctype html><meta charset="utf-8"><body style="margin:0">'
        f'<iframe style="{size}"></iframe><pre></pre>'
        f"<textarea hidden>\n{html.escape(content)}</textarea><script>{_MEASURE}</script>"
    )


def browse(path: pathlib.Path, *flags: str) -> str:
    """What Chromium prints for a page, with a profile of its own."""
    profile = f"--user-data-dir={path.parent / 'profile'}"
    command = [BROWSER, *FLAGS, profile, "--virtual-time-budget=4000", *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("sweep", example_results.SWEEPS)
def test_the_report_fits_the_window(sweep, width, tmp_path):
    page.write(sweep_results(example_results.SWEEPS[sweep]()), tmp_path)
    size = WIDTHS[width]
    path = tmp_path / "framed.html"
    path.write_text(framed((tmp_path / page.REPORT).read_text(), *size))
    window = f"--window-size={max(500, size[0])},{size[1]}"
    shown = re.search(r"<pre>(.*?)</pre>", browse(path, window, "--dump-dom"), re.DOTALL)
    found = json.loads(html.unescape(shown[1]))
    assert found["width"] == size[0]
    assert found["scrolls"] <= found["width"]
    assert not found["clipped"]
    if sweep != "pending":
        assert found["answer"] < size[1] / 3
        assert found["figures"] > 2
        assert width == "phone" or found["table"] < size[1]
    folder = os.environ.get("HYBRID_SCREENSHOTS")
    if folder:
        target = pathlib.Path(folder).resolve() / f"{sweep}_{width}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        browse(path, window, _PAINT, f"--screenshot={target}")
