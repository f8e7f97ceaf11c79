"""Writes docs/benchmarks.md from the results that are there.

python -m benchmarks.report
"""

import json
from pathlib import Path

from benchmarks import (
    attention_cost,
    cache_dtype,
    data,
    decode,
    machine,
    mixers,
    parts,
    step_budgets,
    train_step,
    vmapped_seeds,
)

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Written by `python -m benchmarks.report` from `benchmarks/results/*.json`; `benchmarks/README.md`
says how each was measured and how to run it again. The model of all tables: vocabulary 1024,
d_model 256, `LLLLLG`, 4 heads, 1 KV head, head_dim 64 local and 128 global, unified keys and
values on the global layer, ffn 1024, window 128 unless said otherwise, float32, 6,102,144 trained
parameters.
"""
SECTIONS = {
    "train_step": (
        "Against transformers",
        "python -m benchmarks.train_step",
        "Both sides start from the same weights; losses of the first steps agree before timing.",
        train_step.markdown,
    ),
    "decode": (
        "Decoding against transformers",
        "python -m benchmarks.decode",
        "The same weights; the first 32 greedy tokens of all sides are equal before timing. "
        "Ours by what unified layers keep (`inference.unified_cache`).",
        decode.markdown,
    ),
    "cache_dtype": (
        "What narrower caches cost",
        "python -m benchmarks.cache_dtype --workdir=runs/demo",
        "Another model: that of `make demo`, scored on its held-out text through the cache.",
        cache_dtype.markdown,
    ),
    "parts": (
        "Parts of the train step",
        "python -m benchmarks.parts",
        "Each part is timed by itself, forward and backward, and multiplied by how often a step "
        "runs it; FLOPs are matrix products of the compiled program.",
        parts.markdown,
    ),
    "attention_cost": (
        "Cost against length",
        "python -m benchmarks.attention_cost",
        "A local layer costs twice as much for twice the tokens; dense attention four times.",
        attention_cost.markdown,
    ),
    "mixers": (
        "Layers of every mixer",
        "python -m benchmarks.mixers",
        "A whole layer of each letter of the pattern beside a local one, readings in turn.",
        mixers.markdown,
    ),
    "data": (
        "Text to rows",
        "python -m benchmarks.data",
        "A store is prepared, opened and read by random rows, beside other containers.",
        data.markdown,
    ),
    "step_budgets": (
        "A train step on a TPU slice",
        "python -m benchmarks.step_budgets",
        "Another kind of figure: not timed, but counted in programs that are compiled for chips "
        "that are not there (`hybrid.plan --topology`), for the Gemma 4 presets. Rows with "
        "`model.attention=chunked` are the XLA loop in place of the TPU kernels "
        "([kernels.md](kernels.md)); the other rows are what `auto` takes.",
        step_budgets.markdown,
    ),
    "vmapped_seeds": (
        "Seeds of a sweep as one program",
        "python -m benchmarks.vmapped_seeds",
        "Another model: `configs/micro.py`, 0.3 million parameters, three seeds.",
        vmapped_seeds.markdown,
    ),
}


def main() -> None:
    """Reads the results, writes the page."""
    PAGE.write_text(page())
    print("written:", PAGE)


def page() -> str:
    """The page's text; a benchmark without a result is left out."""
    text = [HEAD]
    for name, (title, command, claim, markdown) in SECTIONS.items():
        path = machine.RESULTS / f"{name}.json"
        if path.exists():
            table = markdown(json.loads(path.read_text()))
            text.append(f"## {title}\n\n`{command}`\n\n{claim}\n\n{table}\n")
    return "\n".join(text)


if __name__ == "__main__":
    main()
