"""`python -m hybrid.generate`: a prompt in, its continuation out (`command.py`)."""

import functools
import sys

from hybrid.process import cli

main = functools.partial(cli.main, "hybrid.generate.command")

if __name__ == "__main__":
    sys.exit(main())
