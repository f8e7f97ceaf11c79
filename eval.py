"""Evaluates a run: `python eval.py --config=configs/tiny.py --workdir=runs/tiny`."""

import sys

from hybrid.evaluation.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
