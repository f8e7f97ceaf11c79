"""All benchmarks one after the other, each in a process of its own; then docs/benchmarks.md.

python -m benchmarks.run --quick
"""

import subprocess
import sys

MODULES = (
    "parts",
    "attention_cost",
    "mixers",
    "data",
    "vmapped_seeds",
    "train_step",
    "decode",
    "report",
)


def main() -> int:
    """Runs the modules in order; the exit status of the first that fails, else 0."""
    for module in MODULES:
        arguments = [] if module == "report" else sys.argv[1:]
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        print("$", " ".join(command[1:]), flush=True)
        status = subprocess.run(command, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
