"""An evaluation as a table for people; `Result.to_dict` is the one for programs."""

from hybrid.evaluation.perplexity import Result


def table(result: Result, *, step: int, config: str) -> str:
    """The result as lines of text: the totals, then by context length, then by position.

    `step` and `config` say which model was scored.
    """
    parts = [f"{'model':<15} step {step}, {config}\n" + _totals(result)]
    if result.by_context:
        parts.append(_by_context(result))
    parts.append(_by_position(result))
    return "\n\n".join(parts)


def _totals(result: Result) -> str:
    rows = [
        ("loss", f"{result.loss:.4f} nats a token"),
        ("perplexity", f"{result.perplexity:.4f}"),
        ("bits per byte", _bits(result)),
        ("tokens", f"{result.num_tokens:,}"),
        ("bytes", "unknown" if result.num_bytes is None else f"{result.num_bytes:,}"),
        ("context length", f"{result.context_length} (stride {result.stride})"),
        ("bos", result.bos),
    ]
    return "\n".join(f"{name:<15} {value}" for name, value in rows)


def _bits(result: Result) -> str:
    return "unknown" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"


def _by_context(result: Result) -> str:
    lines = [f"{'context':>9} {'loss':>9} {'perplexity':>11} {'bits/byte':>10}"]
    lines += [
        f"{one.context_length:>9} {one.loss:>9.4f} {one.perplexity:>11.4f} {_bits(one):>10}"
        for one in result.by_context
    ]
    return "\n".join(lines)


def _by_position(result: Result) -> str:
    lines = [f"{'position':>15} {'loss':>9} {'tokens':>12}"]
    lines += [
        f"{f'[{bucket.start}, {bucket.end})':>15} {bucket.loss:>9.4f} {bucket.num_tokens:>12,}"
        for bucket in result.by_position
    ]
    return "\n".join(lines)
