"""The conformance suite on what is installed: our implementations and public ones.

    python -m benchmarks.conformance            about six minutes; nothing is timed

Ours are all of the table behind `hybrid.attend`; beside them jax.nn and, where they are installed,
tokamax and transformers, on a CPU. Each gets an adapter below that hands it the call in its own
arguments wherever it has them, and refuses what it has no argument for. Writes
`results/conformance.json` and the tables of docs/conformance.md.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from hybrid.ops import dispatch
from hybrid.ops.attention import ATTENTION, attend
from hybrid.ops.band import Band
from hybrid.testing import CHECKS, AttentionCall, Unsupported, attention_conformance
from hybrid.testing.report import FAILED, PASSED, REFUSED

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
_TABLES = re.compile(r"(<!-- conformance (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_BACKENDS = {"pallas": "tpu"}  # kernels of other backends, interpreted here
_NOT_HERE = ("cudnn",)  # kernels that nothing interprets
_MASKS = ("window_size", "segments", "own_segments", "offset", "positions")


@dataclasses.dataclass(frozen=True)
class Side:
    """An attention under test.

    Attributes:
      package: whose version is told.
      how: what was run, for the page.
      arrays: as of `attention_conformance`.
      backend: whose kernels are interpreted; None: that of this machine.
    """

    name: str
    package: str
    how: str
    function: Callable[[AttentionCall], Any]
    arrays: str = "jax"
    backend: str | None = None


def main(argv: list[str] | None = None) -> None:
    """Runs the suite on all that is installed, prints the tables, writes results and page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    result = run()
    for table in TABLES.values():
        print(table(result), end="\n\n")
    print("written:", machine.save("conformance", result))
    PAGE.write_text(page())
    print("written:", PAGE)


def run() -> dict[str, Any]:
    """Every side's report, as one JSON-able value."""
    columns = []
    for side in sides():
        start = time.perf_counter()
        with dispatch.use_backend(side.backend or dispatch.backend()):
            report = attention_conformance(side.function, arrays=side.arrays, name=side.name)
        print(f"{side.name}: {report.summary} ({time.perf_counter() - start:.0f} s)", flush=True)
        columns.append({"package": side.package, "how": side.how, **report.to_dict()})
    packages = dict.fromkeys([*(column["package"] for column in columns), "jax", "torch"])
    versions = {name: version(name) for name in packages}
    host = {"machine": machine.describe(), "backend": jax.default_backend()}
    return {**host, "versions": versions, "columns": columns}


def version(package: str) -> str:
    """The installed version; "" for none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def sides() -> Iterator[Side]:
    """All that is installed, ours first."""
    for name in ATTENTION.names:
        if name in _NOT_HERE:
            continue
        backend = _BACKENDS.get(name)
        how = f'`hybrid.attend(implementation="{name}")`'
        how += f", kernels for {backend.upper()}s, interpreted" if backend else ""
        yield Side(name, "hybrid-attention", how, ours(name), backend=backend)
    how = '`jax.nn.dot_product_attention(implementation="xla")`'
    yield Side("jax.nn", "jax", how, jax_nn)
    if importlib.util.find_spec("tokamax"):
        for name in ("xla", "xla_chunked"):
            how = f'`tokamax.dot_product_attention(implementation="{name}")`'
            yield Side(f"tokamax {name}", "tokamax", how, functools.partial(tokamax, name))
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        for name, (how, function) in TRANSFORMERS.items():
            yield Side(f"transformers {name}", "transformers", how, function, "torch")


# --- Adapters of jax libraries ----------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("scale", "softcap", "implementation"))
def _attend(q, k, v, band, **options):
    return attend(q, k, v, band, **options)


def ours(implementation: str) -> Callable[[AttentionCall], jax.Array]:
    """An implementation of ours; every feature has its argument."""

    def function(call: AttentionCall) -> jax.Array:
        names = ("q_segments", "kv_segments", "q_positions", "kv_positions", "offset")
        band = Band(call.window_size, **{name: getattr(call, name) for name in names})
        options = {"scale": call.scale, "softcap": call.softcap, "sinks": call.sinks}
        return _attend(call.q, call.k, call.v, band, **options, implementation=implementation)

    return function


def _band_arguments(call: AttentionCall) -> dict[str, Any]:
    """Arguments of `jax.nn.dot_product_attention`: its own for rows, a mask for all others.

    A window is its left bound, which doesn't count the token itself.
    """
    if set(call.features) & {"segments", "offset", "positions"}:
        return {"mask": jnp.asarray(call.visible()[:, None])}
    left = None if call.window_size is None else (call.window_size - 1, 0)
    return {"is_causal": True, "local_window_size": left}


def jax_nn(call: AttentionCall) -> jax.Array:
    """jax's own, in XLA."""
    call.need_only(*_MASKS)
    arguments = {"scale": call.scale, "implementation": "xla", **_band_arguments(call)}
    return jax.nn.dot_product_attention(call.q, call.k, call.v, **arguments)


def tokamax(implementation: str, call: AttentionCall) -> jax.Array:
    """tokamax's, whose kernels need a GPU or a TPU; these run anywhere."""
    import tokamax

    call.need_only(*_MASKS, "softcap")
    arguments = {"scale": call.scale, "logits_soft_cap": call.softcap, **_band_arguments(call)}
    arrays = call.q, call.k, call.v
    return tokamax.dot_product_attention(*arrays, implementation=implementation, **arguments)


# --- Adapters of transformers -----------------------------------------------------------------


def _mask_arguments(call: AttentionCall) -> dict[str, Any]:
    """Arguments of the mask functions of transformers, as its models give them."""
    import torch
    from transformers import masking_utils

    causal, size = masking_utils.causal_mask_function, call.window_size
    if size is not None:
        causal = masking_utils.sliding_window_causal_mask_function(size)
    if call.kv_segments is not None:
        packed = masking_utils.packed_sequence_mask_function(call.kv_segments)
        causal = masking_utils.and_masks(causal, packed)
    batch, num_queries, num_keys = call.q.shape[0], call.q.shape[1], call.k.shape[1]
    arguments = {"batch_size": batch, "q_length": num_queries, "kv_length": num_keys}
    arguments |= {"q_offset": call.offset, "mask_function": causal, "local_size": size}
    if call.kv_positions is not None:
        arguments["attention_mask"] = _present(call)
    elif num_keys > call.offset + num_queries:
        arguments["attention_mask"] = torch.ones(batch, call.offset + num_queries, dtype=torch.bool)
    return arguments | {"allow_is_causal_skip": call.kv_segments is None}


def _present(call):
    """The 2D mask of padded rows, the only positions that transformers' masks express."""
    queries, keys = call.positions()
    in_order = np.arange(keys.shape[1])
    if queries.shape != keys.shape or (queries != in_order).any():
        raise Unsupported("positions only of padded rows")
    if ((keys != in_order) & (keys != -1)).any():
        raise Unsupported("positions only of padded rows")
    return call.kv_positions >= 0


def _forward(function, call: AttentionCall, mask, **arguments):
    """An attention function of transformers on [b, n, t, h]; it gives [b, t, n, h]."""
    groups = call.q.shape[2] // call.k.shape[2]
    module = SimpleNamespace(num_key_value_groups=groups, training=False, is_causal=True)
    module.sinks = call.sinks
    heads_first = (array.transpose(1, 2) for array in (call.q, call.k, call.v))
    return function(module, *heads_first, mask, scaling=call.scale, **arguments)[0]


def transformers_eager(call: AttentionCall):
    """Gemma 2's eager attention; gpt-oss's where there are sinks."""
    from transformers import masking_utils
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss

    call.need_only("window_size", "segments", "offset", "positions", "softcap", "sinks")
    mask = masking_utils.eager_mask(dtype=call.q.dtype, **_mask_arguments(call))
    if call.sinks is None:
        return _forward(gemma2, call, mask, softcap=call.softcap)
    if call.softcap is not None:
        raise Unsupported("sinks and softcap are not of one model")
    return _forward(gpt_oss, call, mask)


def transformers_sdpa(call: AttentionCall):
    """`scaled_dot_product_attention` of torch as transformers calls it."""
    from transformers import masking_utils
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    call.need_only("window_size", "segments", "offset", "positions")
    mask = masking_utils.sdpa_mask(**_mask_arguments(call))
    return _forward(sdpa_attention_forward, call, mask)


def transformers_flex(call: AttentionCall):
    """`flex_attention` of torch as transformers calls it; not compiled: that takes 12 s a
    shape, stops after eight shapes, and has no backward on a CPU."""
    import torch
    from transformers import masking_utils
    from transformers.integrations.flex_attention import flex_attention_forward

    call.need_only("window_size", "segments", "offset", "positions", "softcap")
    with torch.compiler.set_stance("force_eager"):
        mask = masking_utils.flex_attention_mask(**_mask_arguments(call))
        return _forward(flex_attention_forward, call, mask, softcap=call.softcap)


TRANSFORMERS = {
    "eager": ("eager attention of Gemma 2, of gpt-oss for sinks", transformers_eager),
    "sdpa": ("`sdpa_attention_forward`", transformers_sdpa),
    "flex": ("`flex_attention_forward`, not compiled", transformers_flex),
}


# --- The page ---------------------------------------------------------------------------------


def page() -> str:
    """docs/conformance.md with its tables made anew from the result."""
    result = json.loads((machine.RESULTS / "conformance.json").read_text())

    def fill(match: re.Match) -> str:
        opening, table, end = match.groups()
        return f"{opening}\n{TABLES[table](result)}\n\n{end}"

    return _TABLES.sub(fill, PAGE.read_text())


def checks_table(result: dict[str, Any]) -> str:
    """What each check is for."""
    del result
    rows = [(check.name, check.reason) for check in CHECKS.values()]
    return machine.table(("check", "what must hold"), rows)


def verdicts_table(result: dict[str, Any]) -> str:
    """A column a side, a row a check."""
    columns = result["columns"]
    marks = {PASSED: "✓", FAILED: "**✗**", REFUSED: "–"}
    found = [{row["check"]: marks[row["verdict"]] for row in c["rows"]} for c in columns]
    rows = [(check, *(column[check] for column in found)) for check in found[0]]
    counts = [c["counts"] for c in columns]
    rows.append(("passed, failed, refused", *(" / ".join(map(str, c.values())) for c in counts)))
    table = machine.table(("", *(c["name"] for c in columns)), rows)
    host = f"Backend {result['backend']}, {machine.line(result['machine'])}"
    return f"{table}\n\n✓ passed, **✗** failed, – refused. {host}."


def details_table(result: dict[str, Any]) -> str:
    """What was run, what was wrong with it, and why checks were refused."""
    rows = []
    for column in result["columns"]:
        package, found = column["package"], column["rows"]
        wrong = [f"{row['check']}: {row['detail']}" for row in found if row["verdict"] == FAILED]
        reasons = dict.fromkeys(row["detail"] for row in found if row["verdict"] == REFUSED)
        told = ("<br>".join(lines).replace("|", "\\|") for lines in (wrong, reasons))
        run = f"{package} {result['versions'][package]}: {column['how']}"
        rows.append((column["name"], run, *told))
    return machine.table(("", "what was run", "what failed", "why it refuses"), rows)


TABLES = {"checks": checks_table, "verdicts": verdicts_table, "details": details_table}


if __name__ == "__main__":
    main()
