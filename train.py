"""Trains a model: `python train.py --config=configs/tiny.py --workdir=runs/tiny`."""

import sys

from hybrid.training.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
