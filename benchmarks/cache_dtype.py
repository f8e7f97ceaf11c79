"""What narrower caches cost: bytes, and how far predictions move, by position.

    python train.py --config=configs/tiny.py --workdir=runs/demo        (what `make demo` does)
    python -m benchmarks.cache_dtype --workdir=runs/demo                about a minute

The held-out text goes through the cache window by window, once a dtype. Against the cache in the
model's dtype: the mean KL divergence of the next-token distributions, how often the likeliest token
is the same, and the change of perplexity, in buckets of position that double.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from hybrid import model
from hybrid.costs import model_costs as cost
from hybrid.data import pipeline
from hybrid.evaluation import windows
from hybrid.evaluation.target import Target, of_run
from hybrid.inference.config import InferenceConfig
from hybrid.inference.scoring import through_cache
from hybrid.model.mixers.kv_cache import SCALE_DTYPE
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.sharding import make_mesh

DTYPES = ("bfloat16", "int8")
MOST_CHANGE = 0.005  # of perplexity, in any bucket
MOST_BYTES = 0.54  # int8's over bfloat16's


def main(argv: list[str] | None = None) -> None:
    """Scores the run, prints the table and writes `results/cache_dtype.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="a trained run, say of make demo")
    parser.add_argument("--max_tokens", type=int, default=65_536)
    arguments = parser.parse_args(argv)
    result = run(of_run(arguments.workdir, "latest", None, {}), arguments.max_tokens)
    print(markdown(result))
    print("written:", machine.save("cache_dtype", result))


def run(target: Target, max_tokens: int) -> dict[str, Any]:
    """The comparison as one JSON-able value."""
    config = target.experiment
    context = config.training.context_length
    params = target.read_params(make_mesh(config.mesh))
    batches = list(_batches(target, context, max_tokens))
    exact = _log_probabilities(config.model, params, batches, "")
    layers = model.layer_plan(config.model)

    def size(dtype: str) -> int:
        return cost.cache_bytes(layers, CacheFormat(context, dtype), 1)["total"]

    return {
        "machine": machine.describe(),
        "run": Path(target.name).name,
        "step": target.step,
        "dtype": config.model.dtype,
        "scale_dtype": np.dtype(SCALE_DTYPE).name,
        "context": context,
        "bytes": {dtype: size(dtype) for dtype in (config.model.dtype, *DTYPES)},
        "rows": [
            {"dtype": dtype, **row}
            for dtype in DTYPES
            for row in compare(
                exact, _log_probabilities(config.model, params, batches, dtype), batches, context
            )
        ],
    }


def _batches(target: Target, context: int, max_tokens: int):
    """Batches with one window a row."""
    config = target.experiment
    documents = pipeline.open_held_out(
        config.data,
        vocab_size=config.model.vocab_size,
        context_length=context,
        split=target.split,
    )
    packed = windows.pack_windows(
        [len(tokens) for tokens in documents.tokens],
        context_length=context,
        bos=documents.bos,
        max_tokens=max_tokens,
        share_rows=False,
    )
    for batch, _ in windows.batches(packed, documents.tokens, documents.bos_id, documents.pad_id):
        yield batch


def _stream_log_probabilities(config, params, x, targets, loss_mask):
    del targets, loss_mask
    return jax.nn.log_softmax(model.head(config, params, x))


def _log_probabilities(config, params, batches, cache_dtype: str) -> list[np.ndarray]:
    """[b, t, v] of each batch."""
    inference = InferenceConfig(cache_dtype=cache_dtype)
    score = through_cache(_stream_log_probabilities, inference)
    compiled = jax.jit(score, static_argnums=0)
    return [np.asarray(compiled(config, params, batch)) for batch in batches]


def compare(
    exact: Sequence[np.ndarray], other: Sequence[np.ndarray], batches: Sequence[Any], context: int
) -> list[dict[str, Any]]:
    """A row for each bucket of position, and one for all positions (start 0, end `context`)."""
    columns = [_columns(*each) for each in zip(exact, other, batches, strict=True)]
    position, kl, same, nll, moved = map(np.concatenate, zip(*columns, strict=True))
    bounds = [0, *(1 << power for power in range(context.bit_length()))]
    pairs = [*zip(bounds, [*bounds[1:], context], strict=True), (0, context)]
    rows = []
    for start, end in pairs:
        here = (position >= start) & (position < end)
        if end > start and here.any():
            rows.append(
                {
                    "start": start,
                    "end": end,
                    "num_tokens": int(here.sum()),
                    "kl": float(kl[here].mean()),
                    "same_top": float(same[here].mean()),
                    "perplexity_change": float(np.expm1((moved - nll)[here].mean())),
                }
            )
    return rows


def _columns(exact, other, batch):
    """A token each: position, KL, whether the likeliest token is the same, nats before, after."""
    mask = batch.loss_mask
    p, q = (array[mask].astype(np.float64) for array in (exact, other))
    target = batch.targets[mask][:, None]
    kl = np.sum(np.exp(p) * (p - q), axis=1)
    nats = (-np.take_along_axis(array, target, axis=1)[:, 0] for array in (p, q))
    return batch.positions[mask], kl, p.argmax(1) == q.argmax(1), *nats


def markdown(result: dict[str, Any]) -> str:
    """The table of a result."""
    header = ("cache", "positions", "tokens", "mean KL, nats", "same top token", "perplexity")
    rows = [
        (
            row["dtype"],
            _span(row, result["context"]),
            f"{row['num_tokens']:,}",
            f"{row['kl']:.1e}",
            f"{100 * row['same_top']:.2f} %",
            f"{100 * row['perplexity_change']:+.3f} %",
        )
        for row in result["rows"]
    ]
    sizes = result["bytes"]
    return "\n\n".join(
        [
            machine.table(header, rows),
            f"Bytes of a cache of {result['context']} tokens: "
            + ", ".join(f"{dtype} {size:,}" for dtype, size in sizes.items())
            + f"; int8 with a {result['scale_dtype']} scale a head and token is "
            f"{sizes['int8'] / sizes['bfloat16']:.3f} of bfloat16. Against the cache in "
            f"{result['dtype']}, step {result['step']} of a run of configs/tiny.py.",
        ]
    )


def _span(row: dict[str, Any], context: int) -> str:
    whole = row["end"] - row["start"] == context
    return "all" if whole else f"{row['start']} to {row['end'] - 1}"


if __name__ == "__main__":
    main()
