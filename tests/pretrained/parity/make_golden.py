"""Writes golden/NAME.npz: what transformers computes for each variant.

    PYTHONPATH=tests python -m pretrained.parity.make_golden [NAME ...]

Needs the `slow` extra (torch, transformers). A file holds `config` (config.json's text), `names`
and `shapes` of the saved tensors (JSON), `rows` [b, t + 1], `logits` (float64) and `logits32` at
POSITIONS, `nll` [b, t] (float64), and `gradients` (float64, a row of `keyed.prints` for each name
in `gradient_names`). The weights are keyed, so they are not in it.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import transformers
from pretrained.parity import keyed, peer
from pretrained.parity.variants import POSITIONS, SEED, VARIANTS, token_rows

FOLDER = pathlib.Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file."""
    rows = token_rows(SEED)
    with tempfile.TemporaryDirectory() as folder:
        shapes = peer.save(name, SEED, pathlib.Path(folder))
        config = (pathlib.Path(folder) / "config.json").read_text()
    narrow = peer.outputs(name, SEED, rows, "float32")
    wide = peer.outputs(name, SEED, rows, "float64")
    names = sorted(wide.gradients)
    return {
        "transformers": np.array(transformers.__version__),
        "config": np.array(config),
        "shapes": np.array(json.dumps(shapes)),
        "rows": rows,
        "logits32": narrow.logits[:, POSITIONS],
        "logits": wide.logits[:, POSITIONS],
        "nll": wide.nll,
        "gradient_names": np.array(json.dumps(names)),
        "gradients": np.stack([keyed.prints(n, wide.gradients[n]) for n in names]),
    }


def main(names: list[str]) -> None:
    """Writes the files and prints how far transformers' float32 is from its float64."""
    transformers.logging.disable_progress_bar()
    for name in names or VARIANTS:
        arrays = golden(name)
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        rounding = np.abs(arrays["logits32"] - arrays["logits"]).max()
        loudest = np.abs(arrays["logits"]).max()
        size = path.stat().st_size / 1000
        print(f"{name:28} {size:6.1f} kB  logits to {loudest:5.1f}  float32 {rounding:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
