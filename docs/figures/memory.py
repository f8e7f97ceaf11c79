"""Draws docs/figures/memory.svg, the plot of docs/memory.md: caches of the Gemma 4 presets.

python docs/figures/memory.py
"""

import math
import pathlib

import hybrid
from hybrid.ablate.report import figures
from hybrid.evaluation import drawing

OUTPUT = pathlib.Path(__file__).with_suffix(".svg")
TITLE = "KV-cache bytes of the Gemma 4 presets against context, hybrid and all-global"
PRESETS = {"31b": "31B", "26b_a4b": "26B-A4B", "12b": "12B", "e4b": "E4B", "e2b": "E2B"}
CONTEXTS = [4096 << doubling for doubling in range(7)]
SHADES = {
    "hybrid": ("#0c4254", "#12805c", "#3f9a3c", "#8fae2c", "#b6b83a"),
    "all-global": ("#7d3f06", "#a8590b", "#c96c12", "#e07b1a", "#f0a04b"),
}


def draw() -> str:
    """The SVG document: two lines a preset, both axes in powers of two."""
    with drawing.style():
        figure, axes = drawing.canvas(height=4.6)
        for index, (preset, name) in enumerate(PRESETS.items()):
            plans = [hybrid.plan(f"configs/gemma4.py:{preset}", context=c) for c in CONTEXTS]
            sizes = {
                "hybrid": [plan.kv_cache_bytes["total"] for plan in plans],
                "all-global": [plan.kv_cache_bytes_all_global for plan in plans],
            }
            for kind, values in sizes.items():
                heights = [math.log2(value / 2**30) for value in values]
                label = name if kind == "hybrid" else f"{name} all-global"
                axes.plot(CONTEXTS, heights, "o-", color=SHADES[kind][index], label=label)
        figures.log2_axis(axes, CONTEXTS)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:.0f}K")
        axes.set_yticks(range(-5, 9, 2))
        axes.yaxis.set_major_formatter(lambda y, _: f"{2**y:g}" if y >= 0 else f"1/{2**-y:g}")
        axes.set_xlabel("context (tokens)")
        axes.set_ylabel("KV cache (GiB)")
        figures.legend(axes)
        return drawing.to_svg(figure, "memory", TITLE, "bfloat16, one row; computed by hybrid.plan")


if __name__ == "__main__":
    OUTPUT.write_text(draw())
    print(OUTPUT)
