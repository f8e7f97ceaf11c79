"""`python eval.py` and `hybrid-eval`: a trained run and a text in, losses out (`command.py`)."""

import functools
import sys

from hybrid.process import cli

main = functools.partial(cli.main, "hybrid.evaluation.command")

if __name__ == "__main__":
    sys.exit(main())
