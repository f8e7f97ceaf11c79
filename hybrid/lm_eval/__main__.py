"""`python -m hybrid.lm_eval`: tasks of lm-evaluation-harness on a model (`command.py`)."""

import functools
import sys

from hybrid.process import cli

main = functools.partial(cli.main, "hybrid.lm_eval.command")

if __name__ == "__main__":
    sys.exit(main())
