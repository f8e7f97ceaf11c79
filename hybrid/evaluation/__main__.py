"""`python eval.py` and `hybrid-eval`: a trained run and a text in, losses out (`command.py`)."""

import sys
from collections.abc import Sequence

from hybrid.process import signals


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    # Signals are caught before jax is loaded, which takes seconds.
    with signals.caught() as interrupts:
        try:
            from hybrid.evaluation.command import COMMAND
            from hybrid.process import cli
        except (signals.Preempted, KeyboardInterrupt) as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            return 128 + (interrupts.requested or signals.WATCHED[1])
        return cli.main(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
