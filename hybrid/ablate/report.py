"""report.html: the answer in words and one table an arm, then figures, then everything else.

`write(results, folder)` needs results.json's dict alone, finished or not. Read `words.py` for the
answer, `figures.py` for the pictures, `page.py` for the markup.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybrid.ablate import notation, page, view, words
from hybrid.ablate.notation import binary, decimal, fixed, percent, plain, signed, times
from hybrid.ablate.page import Html, element
from hybrid.ablate.view import Arm, Cell
from hybrid.process.files import write_whole

REPORT = "report.html"
_MATCH = {
    "tokens": "tokens trained on",
    "flops": "training FLOPs, by the number of steps",
    "params": "parameters, by ffn_dim",
}


def write(results: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Draws figures/*.svg and .png and writes report.html into `folder`, each whole or not at all.

    Equal results give equal bytes.
    """
    from hybrid.ablate import figures  # matplotlib takes half a second, and --help shouldn't

    drawn = figures.write(results, folder)
    write_whole(folder / REPORT, render(results, drawn))


def render(results: Mapping[str, Any], drawn: Sequence[Any] = ()) -> str:
    """The page, with the figures of `figures.draw`.  Pure."""
    arms = view.arms(results)
    parts = [*_head(results, arms)]
    parts += [_summary_table(arm, many=len(arms) > 1) for arm in arms]
    for arm in arms:
        mine = [_figure(each) for each in drawn if each.arm == arm.name]
        if mine:
            parts.append(element("h2", f"Figures{_of(arm, arms)}"))
            parts.append(element("div", *mine, class_="figures"))
    parts += _learning_rates(arms)
    parts += _failed(results)
    parts += _settings(results, arms)
    return page.document(f"{results['name']}: ablation", *parts)


def _of(arm: Arm, arms: Sequence[Arm]) -> str:
    return f": {arm.name or arm.task}" if len(arms) > 1 else ""


# --- First screen ----------------------------------------------------------------------------


def _head(results: Mapping[str, Any], arms: Sequence[Arm]) -> Iterator[Html]:
    yield element("h1", results["name"])
    yield element("p", _about(results), class_="about")
    progress = words.progress(results)
    if progress:
        yield element("p", progress, class_="progress")
    blocks = []
    for arm in arms:
        blocks.append(element("h2", f"Answer{_of(arm, arms)}"))
        blocks += [element("p", page.unbroken(sentence)) for sentence in words.of_arm(arm)]
    if blocks:
        yield element("section", *blocks, class_="answer")


def _about(results: Mapping[str, Any]) -> str:
    """Axes, seeds, steps and machine in a line."""
    axes = [f"{key} over {plain(values)}" for key, values in (results.get("axes") or [])]
    if not axes:
        axes = [notation.listed(list(dict.fromkeys(run["name"] for run in results["cells"])))]
    runs, seeds = len(results["cells"]), len(results["seeds"])
    parts = [*axes, f"{runs} runs, {seeds} seed{'' if seeds == 1 else 's'} a cell"]
    parts += [f"{_steps(results)} steps"] if _steps(results) else []
    parts += [f"equal {_MATCH.get(results['match'], results['match'])}"]
    return " · ".join([*parts, *([results["machine"]] if results.get("machine") else [])])


def _steps(results: Mapping[str, Any]) -> str:
    """The runs' steps; arms and `match` may give them different ones."""
    steps = {run["num_steps"] for run in results["cells"]} - {None}
    return notation.listed(list(map(str, sorted(steps)))) if steps else ""


def _summary_table(arm: Arm, many: bool) -> Html:
    columns = _columns(arm)
    rows = []
    for cell in arm.cells:
        name = [arm.label(cell)]
        if cell["is_baseline"]:
            name += [" ", element("span", "baseline", class_="tag")]
        rows.append([page.joined(name), *[make(cell) for _, make in columns]])
    what = (f"{arm.name or arm.task}: m" if many else "M") + (
        f"ean over seeds with its 95 % interval, and what a cell costs (FLOPs: forward{_at(arm)})."
    )
    marked = {index for index, cell in enumerate(arm.cells) if cell["is_baseline"]}
    first = arm.axis if arm.scale in (view.NUMBER, view.GRID) else "cell"
    return page.table(what, [first, *[head for head, _ in columns]], rows, marked)


def _at(arm: Arm) -> str:
    """The context of the cache, where it is one."""
    contexts = {cell["cache_context"] for cell in arm.cells} - {None}
    return f"; KV cache: at {contexts.pop()} tokens" if len(contexts) == 1 else ""


def _columns(arm: Arm) -> list[tuple[str, Any]]:
    """(heading, what a cell shows) of the columns that the arm has anything for."""
    speedup = any(cell["effective_speedup"] for cell in arm.cells)
    columns = [
        ("accuracy", _accuracy, any(cell["accuracy"] for cell in arm.cells)),
        ("by seed", _by_seed, any(len(cell["accuracy_by_seed"]) > 1 for cell in arm.cells)),
        ("loss (nats a token)", _loss, True),
        ("difference to the baseline", _difference, any(cell["difference"] for cell in arm.cells)),
        ("parameters", lambda cell: decimal(cell["num_params"]), True),
        ("FLOPs a token", lambda cell: decimal(cell["flops_per_token"]), True),
        ("KV cache", lambda cell: binary(cell["kv_cache_bytes"]), True),
        ("tokens/s", lambda cell: decimal(cell["tokens_per_second"]), True),
        ("effective speed-up", lambda cell: times(cell["effective_speedup"]), speedup),
        ("seeds", lambda cell: str(cell["num_seeds"]), True),
        ("changed", _changed, any(cell["changed"] for cell in arm.cells)),
    ]
    return [(head, make) for head, make, shown in columns if shown]


def _loss(cell: Cell) -> Html:
    return _with_ends(fixed(cell["loss"]["mean"]), cell["loss"], fixed)


def _accuracy(cell: Cell) -> Html | str:
    share = cell["accuracy"]
    return _with_ends(percent(share["mean"]), share, percent) if share else notation.DASH


def _by_seed(cell: Cell) -> str:
    shares = [percent(each["mean"]) for each in cell["accuracy_by_seed"]]
    return " · ".join(shares) or notation.DASH


def _difference(cell: Cell) -> Html | str:
    difference = cell["difference"]
    if not difference:
        return notation.DASH
    verdict = words.verdict(difference)
    shown = element("span", signed(difference["mean"]), class_=verdict)
    said = {"worse": " worse", "better": " better", "same": " not told apart"}.get(
        verdict or "", ""
    )
    tag = element("span", said, class_="tag")
    return _with_ends(page.joined([shown, tag]), difference, signed)


def _with_ends(shown: str, interval: Mapping[str, Any], write_number) -> Html:
    if not notation.has_interval(interval):
        return page.joined([shown])
    ends = f"{write_number(interval['low'])} to {write_number(interval['high'])}"
    return page.joined([shown, " ", element("span", ends, class_="ends")])


def _changed(cell: Cell) -> str:
    changes = cell["changed"].items()
    told = [f"{view.short(key)} {plain(old)} → {plain(new)}" for key, (old, new) in changes]
    return "; ".join(told) or notation.DASH


# --- The rest --------------------------------------------------------------------------------


def _figure(drawn: Any) -> Html:
    files = f"figures/{drawn.name}.svg, .png"
    return element(
        "figure",
        element("h3", drawn.title),
        element("figcaption", drawn.note),
        Html(drawn.svg),
        element("div", files, class_="note"),
    )


def _learning_rates(arms: Sequence[Arm]) -> Iterator[Html]:
    """Loss of every cell at every learning rate, where there are several."""
    for arm in arms:
        if not any(len(cell["learning_rates"]) > 1 for cell in arm.cells):
            continue
        rates = sorted({e["learning_rate"] for c in arm.cells for e in c["learning_rates"]})
        rows = []
        for cell in arm.cells:
            found = {each["learning_rate"]: each for each in cell["learning_rates"]}
            rows.append([arm.label(cell), *[_at_rate(cell, found.get(rate)) for rate in rates]])
        yield element("h2", f"Learning rates{_of(arm, arms)}")
        caption = "Mean loss over seeds at each learning rate; the best is used for the cell."
        yield page.table(caption, ["cell", *[f"{rate:g}" for rate in rates]], rows)


def _at_rate(cell: Cell, entry: Mapping[str, Any] | None) -> Html | str:
    if entry is None:
        return notation.DASH
    shown = f"{fixed(entry['loss'])}"
    if entry["learning_rate"] == cell["learning_rate"]:
        return page.joined([element("strong", shown), " ", element("span", "best", class_="tag")])
    return shown


def _failed(results: Mapping[str, Any]) -> Iterator[Html]:
    runs = [run for run in results["cells"] if run["status"] == "failed"]
    if not runs:
        return
    rows = [
        [run["name"], run["arm"] or notation.DASH, str(run["seed"]), _error(run), run["workdir"]]
        for run in runs
    ]
    yield element("h2", "Failed runs")
    caption = "They are left out of the means; the same command tries them again."
    yield page.table(caption, ["cell", "arm", "seed", "error", "workdir"], rows)


def _error(run: Mapping[str, Any]) -> Html:
    return element("span", run["error"] or "unknown", class_="error")


def _settings(results: Mapping[str, Any], arms: Sequence[Arm]) -> Iterator[Html]:
    """What was held equal, what the intervals mean."""
    baseline = results["baseline"]
    rates = results.get("learning_rates") or sorted(
        {cell["learning_rate"] for arm in arms for cell in arm.cells if cell["learning_rate"]}
    )
    told = {
        "held equal": _MATCH.get(results["match"], results["match"]),
        "axes": "; ".join(f"{k} = {plain(v)}" for k, v in (results.get("axes") or []))
        or "cells as listed",
        "baseline": ", ".join(f"{k} = {plain(v)}" for k, v in (baseline or {}).items()) or "none",
        "seeds": plain(results["seeds"]),
        "steps": _steps(results) or "not trained here",
        "learning rates": ", ".join(f"{rate:g}" for rate in rates) or notation.DASH,
        "machine": results.get("machine") or "unknown",
        **_MEANINGS,
    }
    terms = [element("dt", term) + element("dd", text) for term, text in told.items()]
    yield element("h2", "Settings, and what the numbers mean")
    yield element("dl", *map(Html, terms))


_MEANINGS = {
    "interval of a loss": "95 % t interval of the mean over seeds.",
    "difference": (
        "Cell minus baseline, paired: within a seed all cells see the same data in the same order. "
        "95 % t interval over seeds; worse or better only where it leaves out zero. Intervals are "
        "not corrected for the number of cells: of twenty equal cells, one differs by chance."
    ),
    "by position, repeats": (
        "Losses paired token by token; the interval is over documents, as tokens of one document "
        "are not independent. It holds for the trained parameters, not for other seeds."
    ),
    "interval of an accuracy": "95 % Wilson interval of the questions of all seeds together.",
    "effective speed-up": (
        "Training FLOPs at which the baseline's mean curve first reaches the cell's final loss, by "
        "the cell's own training FLOPs; a dash where the curve doesn't reach it."
    ),
    "reach": "m layers of window w see at most m·(w−1)+1 tokens, the own included.",
}
