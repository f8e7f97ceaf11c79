"""`python -m hybrid.ablate`: a sweep's config in; runs and a report out (`command.py`)."""

import functools
import sys

from hybrid.process import cli

main = functools.partial(cli.main, "hybrid.ablate.command")

if __name__ == "__main__":
    sys.exit(main())
