"""An evaluation as a table for people; `Result.to_dict` is the one for programs."""

from collections.abc import Mapping

from hybrid.evaluation.result import Result, Share

MOST_ROWS = 12
Row = tuple[str, str, int]  # label, value, how many tokens or questions


def table(result: Result, *, step: int | None, config: str) -> str:
    """The result as lines of text: the totals, by source, by context length, then in detail:
    by position and by distance of repeats (text), by distance and number of pairs (tasks).

    `step` and `config` say which model was scored.
    """
    at = "" if step is None else f"step {step}, "
    parts = [f"{'model':<15} {at}{config}\n" + _totals(result)]
    if result.by_source:
        parts.append(_by_source(result))
    if result.by_context:
        parts.append(_by_context(result))
    if result.accuracy is None:
        for name, buckets in (("position", result.by_position), ("repeat after", result.repeats)):
            rows = [(f"[{b.start}, {b.end})", f"{b.loss:.4f}", b.num_tokens) for b in buckets]
            parts.append(_detail((name, "loss", "tokens"), rows))
    else:
        titles = "accuracy", "questions"
        parts.append(_detail(("distance", *titles), _few(result.by_distance)))
        parts.append(_detail(("pairs", *titles), _each(result.by_num_pairs)))
    return "\n\n".join(parts)


def _totals(result: Result) -> str:
    is_text = result.accuracy is None
    num_bytes = "unknown" if result.num_bytes is None else f"{result.num_bytes:,}"
    rows = [
        ("loss", f"{result.loss:.4f} nats a token"),
        ("perplexity", f"{result.perplexity:.4f}"),
        ("bits per byte" if is_text else "accuracy", _bits_or_accuracy(result)),
        ("tokens", f"{result.num_tokens:,}"),
        *([("bytes", num_bytes)] if is_text else []),
        ("context length", f"{result.context_length} (stride {result.stride})"),
        *([("bos", result.bos), ("count_eos", str(result.count_eos).lower())] if is_text else []),
    ]
    return "\n".join(f"{name:<15} {value}" for name, value in rows)


def _bits_or_accuracy(result: Result) -> str:
    if result.accuracy is not None:
        return f"{result.accuracy:.2%}"
    return "unknown" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"


def _by_source(result: Result) -> str:
    width = max(15, *map(len, result.by_source))
    lines = [f"{'source':>{width}} {'loss':>9} {'perplexity':>11} {'bits/byte':>10} {'tokens':>12}"]
    for name, one in result.by_source.items():
        bits = "unknown" if one.bits_per_byte is None else f"{one.bits_per_byte:.4f}"
        losses = f"{one.loss:>9.4f} {one.perplexity:>11.4f} {bits:>10}"
        lines.append(f"{name:>{width}} {losses} {one.num_tokens:>12,}")
    return "\n".join(lines)


def _by_context(result: Result) -> str:
    last = "bits/byte" if result.accuracy is None else "accuracy"
    lines = [f"{'context':>9} {'loss':>9} {'perplexity':>11} {last:>10}"]
    lines += [
        f"{one.context_length:>9} {one.loss:>9.4f} {one.perplexity:>11.4f} "
        f"{_bits_or_accuracy(one):>10}"
        for one in result.by_context
    ]
    return "\n".join(lines)


def _detail(titles: tuple[str, str, str], rows: list[Row]) -> str:
    lines = ["{:>15} {:>9} {:>12}".format(*titles)]
    return "\n".join(lines + ["{:>15} {:>9} {:>12,}".format(*row) for row in rows])


def _each(shares: Mapping[int, Share]) -> list[Row]:
    return [(str(value), f"{one.accuracy:.2%}", one.num) for value, one in shares.items()]


def _few(shares: Mapping[int, Share]) -> list[Row]:
    """A row a share; many shares are joined from one power of two to the next."""
    if len(shares) <= MOST_ROWS:
        return _each(shares)
    joined: dict[int, list[Share]] = {}
    for value, one in shares.items():
        joined.setdefault(value.bit_length(), []).append(one)
    rows = []
    for bits, members in joined.items():
        num = sum(one.num for one in members)
        right = sum(one.accuracy * one.num for one in members)
        rows.append((f"[{1 << bits >> 1}, {1 << bits})", f"{right / num:.2%}", num))
    return rows
