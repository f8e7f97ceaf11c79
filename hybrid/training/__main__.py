"""`python train.py` and `hybrid-train`: a config in, a trained workdir out (`command.py`)."""

import functools
import sys

from hybrid.process import cli

main = functools.partial(cli.main, "hybrid.training.command")

if __name__ == "__main__":
    sys.exit(main())
