"""`python -m hybrid.ablate`: a sweep's config in; runs, results.json and a report out."""

import sys
from collections.abc import Sequence

from hybrid.process import signals


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 1, after the report, if a cell failed."""
    # Signals are caught before jax is loaded, which takes seconds.
    with signals.caught() as interrupts:
        try:
            from hybrid.ablate.command import COMMAND
            from hybrid.process import cli
        except (signals.Preempted, KeyboardInterrupt) as stop:
            print(f"stopped: {stop}", file=sys.stderr)
            return 128 + (interrupts.requested or signals.WATCHED[1])
        return cli.main(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
