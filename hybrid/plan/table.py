"""A plan as text for people: segments as drawn by `LLLLLG × 10`, then parameters, FLOPs, caches.

Read `costs/model_costs.py` first; this file only formats.
"""

from collections.abc import Iterator
from typing import Any

from hybrid import model
from hybrid.costs import model_costs as cost
from hybrid.model.pattern import LayerPlan, Segment
from hybrid.ops.attention import ATTENTION
from hybrid.ops.dispatch import backend, preferred_refusals
from hybrid.plan import PlanReport


def render(report: PlanReport, experiment: Any, title: str) -> str:
    """The whole table, ready to print."""
    plan = model.layer_plan(experiment.model)
    has_idle = report.num_active_params != report.num_params
    active = f", {report.num_active_params:,} active" if has_idle else ""
    cached = in_bytes(report.kv_cache_bytes["total"])
    sections = [
        (f"{title} · {pattern_line(plan)} · context {report.context:,}, batch {report.batch}", []),
        ("layers", [line for segment in plan.segments for line in _segment_lines(segment)]),
        (f"parameters  {report.num_params:,}{active}", _shares(report.params_by_part)),
        (f"FLOPs a token, forward  {report.flops_per_token:,.0f}", _flops(report, experiment)),
        (f"KV cache ({report.cache_dtype})  {cached}", _kv(report)),
        (f"attention on {backend()}", list(_attention_lines(report, experiment))),
    ]
    return "\n\n".join(
        "\n".join([head, *(f"  {line}" for line in lines)]) for head, lines in sections
    )


def pattern_line(plan: LayerPlan) -> str:
    """The segments in a line.

    >>> from hybrid import ModelConfig, plan_layers
    >>> pattern_line(plan_layers(ModelConfig(num_layers=14, last_layer="force_global")))
    'LLLLLG × 2 + LG × 1'
    """
    return " + ".join(f"{segment.letters} × {segment.repetitions}" for segment in plan.segments)


def _segment_lines(segment: Segment) -> Iterator[str]:
    last = segment.first_layer + segment.num_layers - 1
    yield f"{segment.letters} × {segment.repetitions}   layers {segment.first_layer} to {last}"
    for spec in dict.fromkeys(segment.specs):
        count = segment.specs.count(spec) * segment.repetitions
        experts = f", {spec.experts.active} of {spec.experts.num} experts" if spec.experts else ""
        yield f"    {count:>3} {spec.kind:<6}  {spec.mixer.summary()}{experts}"


def _shares(parts: Any) -> list[str]:
    whole = sum(parts.values())
    return [f"{name:<18} {size:>16,}  {size / whole:6.1%}" for name, size in parts.items()]


def _flops(report: PlanReport, experiment: Any) -> list[str]:
    config = experiment.model
    parts: dict[str, float] = {"head": cost.head_flops_per_token(config)}
    parts |= {"projections": 0, "feed-forward": 0}
    for spec in model.layer_plan(config).layers():
        of_layer = cost.layer_flops(config, spec, report.context)
        of_layer[spec.about.title] = of_layer.pop(spec.about.title)  # last
        for name, flops in of_layer.items():
            parts[name] = parts.get(name, 0) + flops
    return _shares({name: round(flops) for name, flops in parts.items()})


def _kv(report: PlanReport) -> list[str]:
    kinds = {k: size for k, size in report.kv_cache_bytes.items() if k != "total" and size}
    lines = [f"{kind:<18} {in_bytes(size):>16}" for kind, size in kinds.items()]
    lines.append(f"{'all global':<18} {in_bytes(report.kv_cache_bytes_all_global):>16}")
    return [*lines, f"{'ratio':<18} {report.kv_cache_ratio:>15.2f}×"]


def in_bytes(size: float) -> str:
    """A size with its unit.

    >>> in_bytes(1536)
    '1.50 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.2f} {unit}"
        size /= 1024
    raise AssertionError


def _attention_lines(report: PlanReport, experiment: Any) -> Iterator[str]:
    """Which implementation each kind of layer gets in training, and why not the others."""
    name = experiment.model.attention
    for spec in dict.fromkeys(model.layer_plan(experiment.model).layers()):
        request = spec.mixer.request(experiment.model, report.context)
        if request is None:
            continue
        reasons = " (forced by model.attention)"
        if name == "auto":
            refused = preferred_refusals(ATTENTION.explain(request))
            reasons = f" (not {refused})" if refused else ""
        yield f"{spec.kind:<18} {ATTENTION.choose(request, name).name}{reasons}"
