"""What a table says about the machine it was made on, and how tables and results are kept."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """The processor, its cores as this process may use them, and Python."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "vector": "avx512" if " avx512f " in _cpu_info() else "",
        "python": platform.python_version(),
    }


def line(machine: dict[str, Any]) -> str:
    """`describe` as a caption."""
    vector = f", {machine['vector']}" if machine["vector"] else ""
    return f"{machine['cores']} cores of {machine['cpu']}{vector}, Python {machine['python']}"


def save(name: str, result: dict[str, Any]) -> Path:
    """Writes a benchmark's result as `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _cpu_name() -> str:
    names = [row for row in _cpu_info().splitlines() if row.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.processor() or "unknown"
