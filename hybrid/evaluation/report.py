"""An evaluation as a table for people; `Result.to_dict` is the one for programs."""

from hybrid.evaluation.result import Bucket, Group, Result

MOST_ROWS = 12


def table(result: Result, *, step: int | None, config: str) -> str:
    """The result as lines of text: the totals, then by context length, then in detail:
    by position and by distance of repeats (text), by distance and number of pairs (tasks).

    `step` and `config` say which model was scored.
    """
    at = "" if step is None else f"step {step}, "
    parts = [f"{'model':<15} {at}{config}\n" + _totals(result)]
    if result.by_context:
        parts.append(_by_context(result))
    if result.accuracy is None:
        parts.append(_by_place("position", result.by_position))
        parts.append(_by_place("repeat after", result.repeats))
    else:
        parts.append(_by_value("distance", _few(result.by_distance)))
        parts.append(_by_value("pairs", [(str(one.value), one) for one in result.by_num_pairs]))
    return "\n\n".join(parts)


def _totals(result: Result) -> str:
    rows = [
        ("loss", f"{result.loss:.4f} nats a token"),
        ("perplexity", f"{result.perplexity:.4f}"),
    ]
    if result.accuracy is None:
        rows.append(("bits per byte", _bits(result)))
    else:
        rows.append(("accuracy", f"{result.accuracy:.2%}"))
    rows.append(("tokens", f"{result.num_tokens:,}"))
    if result.accuracy is None:
        rows.append(("bytes", "unknown" if result.num_bytes is None else f"{result.num_bytes:,}"))
    rows.append(("context length", f"{result.context_length} (stride {result.stride})"))
    if result.accuracy is None:
        rows.append(("bos", result.bos))
    return "\n".join(f"{name:<15} {value}" for name, value in rows)


def _bits(result: Result) -> str:
    return "unknown" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"


def _by_context(result: Result) -> str:
    last = "bits/byte" if result.accuracy is None else "accuracy"
    lines = [f"{'context':>9} {'loss':>9} {'perplexity':>11} {last:>10}"]
    lines += [
        f"{one.context_length:>9} {one.loss:>9.4f} {one.perplexity:>11.4f} "
        f"{_bits(one) if one.accuracy is None else f'{one.accuracy:.2%}':>10}"
        for one in result.by_context
    ]
    return "\n".join(lines)


def _by_place(name: str, buckets: tuple[Bucket, ...]) -> str:
    lines = [f"{name:>15} {'loss':>9} {'tokens':>12}"]
    lines += [
        f"{f'[{bucket.start}, {bucket.end})':>15} {bucket.loss:>9.4f} {bucket.num_tokens:>12,}"
        for bucket in buckets
    ]
    return "\n".join(lines)


def _by_value(name: str, rows: list[tuple[str, Group]]) -> str:
    lines = [f"{name:>15} {'accuracy':>9} {'questions':>12}"]
    lines += [f"{label:>15} {one.accuracy:>9.2%} {one.num:>12,}" for label, one in rows]
    return "\n".join(lines)


def _few(groups: tuple[Group, ...]) -> list[tuple[str, Group]]:
    """Groups by label; many of them are joined from one power of two to the next."""
    if len(groups) <= MOST_ROWS:
        return [(str(one.value), one) for one in groups]
    joined: dict[int, list[Group]] = {}
    for one in groups:
        joined.setdefault(one.value.bit_length(), []).append(one)
    return [
        (f"[{1 << bits >> 1}, {1 << bits})", _together(members)) for bits, members in joined.items()
    ]


def _together(members: list[Group]) -> Group:
    num = sum(one.num for one in members)
    right = sum(one.accuracy * one.num for one in members)
    return Group(members[0].value, right / num, num)
