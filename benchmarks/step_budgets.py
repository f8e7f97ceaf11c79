"""What one device does in a train step of each Gemma 4 preset, counted in programs for TPU slices.

python -m benchmarks.step_budgets                    --only 31b-8K e2b-128K: some of the cases

Nothing is timed but the compiler: `hybrid.plan --topology` compiles the step for chips that are not
there. Needs libtpu (`pip install -e .[tpu]`), and minutes a case.
"""

import argparse
import json
import sys
from typing import Any, NamedTuple

from benchmarks import machine
from hybrid import experiment
from hybrid.plan import budget, topology

PARTS = ("embedding_and_loss", "local", "global", "experts")
V5P, V5E = "v5p:4x4x4", "v5e:16x16"


class Case(NamedTuple):
    """A step: preset, slice, rows and tokens of a row, mesh, and other keys."""

    preset: str
    slice: str
    rows: int
    tokens: int
    mesh: dict[str, int]
    keys: dict[str, str] = {}  # noqa: RUF012

    @property
    def title(self) -> str:
        """The preset and what differs from it."""
        return ", ".join([self.preset, *(f"{key}={value}" for key, value in self.keys.items())])


LONG = {"fsdp": 8, "context": 8}
SEPARATE = {"model.unified_kv": "false"}
CHUNKED = {"model.attention": "chunked"}  # the XLA loop in place of the TPU kernels
AUTO = {
    **{
        f"{preset}-8K": Case(preset, V5P, 64, 8192, {"fsdp": 64})
        for preset in ("e2b", "e4b", "12b", "26b_a4b", "31b")
    },
    "31b-64K": Case("31b", V5P, 8, 65_536, LONG),
    "31b-256K": Case("31b", V5P, 8, 262_144, LONG),
    "31b-256K-separate": Case("31b", V5P, 8, 262_144, LONG, SEPARATE),
    "e2b-128K": Case("e2b", V5E, 16, 131_072, {"fsdp": 16, "context": 16}),
}
CASES = {
    name: case
    for auto, each in AUTO.items()
    for name, case in (
        (auto, each),
        (f"{auto}-chunked", each._replace(keys=each.keys | CHUNKED)),
    )
}


def main() -> None:
    """Compiles the cases one after the other; each is kept as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    path = machine.RESULTS / "step_budgets.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    for name in options.only:
        print(name, end="", flush=True, file=sys.stderr)
        rows[name] = _measure(CASES[name])
        ordered = {each: rows[each] for each in CASES if each in rows}
        machine.save("step_budgets", {"machine": machine.describe(), "rows": ordered})
        print(f": {rows[name]['compile_seconds']:.0f} s", file=sys.stderr)
    print(markdown(json.loads(path.read_text())))


def _measure(case: Case) -> dict[str, Any]:
    keys = {"training.batch_size": case.rows, "training.context_length": case.tokens}
    keys |= {"mesh.data": 1} | {f"mesh.{axis}": size for axis, size in case.mesh.items()}
    keys |= {"model.remat": "full", **case.keys}
    page = f"configs/gemma4.py:{case.preset}"
    loaded = experiment.load(page, {key: str(value) for key, value in keys.items()})
    return budget.budget(loaded, topology.parse(case.slice)).to_dict()


def markdown(result: dict[str, Any]) -> str:
    """A row a case: does it fit, what it moves, what would bound it."""
    rows = []
    for name, row in result["rows"].items():
        case = CASES[name]
        sizes, parts, roof = (
            row[key] or {}
            for key in ("bytes_per_device", "collective_bytes_per_device", "roofline")
        )
        rows.append(
            (
                case.title,
                case.slice,
                " × ".join(f"{axis} {size}" for axis, size in case.mesh.items()),
                f"{case.rows} × {case.tokens // 1024}K",
                "yes" if row["fits"] else "no",
                *(_gib(sizes[key]) for key in ("arguments", "temporaries", "total")),
                *(_gib(parts.get(part)) for part in PARTS),
                f"{row['flops_ratio']:.2f}" if row["flops_ratio"] else "",
                f"{roof['mfu']:.0%}, {row['limit']}" if roof else "",
                f"{row['compile_seconds']:.0f}" if row["compile_seconds"] else "",
            )
        )
    header = (
        *("preset", "slice", "mesh", "rows × tokens", "fits", "arguments", "temporaries", "total"),
        *(part.replace("_", " ") for part in PARTS),
        *("FLOPs × formula", "MFU at most", "s to compile"),
    )
    caption = (
        "bfloat16, `model.remat=full`, AdamW with float32 moments. GiB a device; of the parts of "
        "the model, what comes from other devices in a step. The bound on MFU is that of a "
        "program that overlaps all it can (docs/plan.md). Compiling takes several times as long "
        "beside other work, as it did for some rows. Compiled on "
        f"{machine.line(result['machine'])}."
    )
    return machine.table(header, rows) + "\n\n" + caption


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f}"


if __name__ == "__main__":
    main()
