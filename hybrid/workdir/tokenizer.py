"""`tokenizer/`: a run keeps its own tokenizer, whatever becomes of the original."""

import pathlib

from hybrid.origin import TOKENIZER
from hybrid.process.files import whole_folder


def keep(tokenizer: str, workdir: pathlib.Path) -> None:
    """Copies the files of `data.tokenizer` into the workdir, where they aren't there yet."""
    if tokenizer == "byte" or (workdir / TOKENIZER).exists():
        return
    from hybrid.pretrained.tokenizer import copy_files  # only runs with such a file pay for it

    with whole_folder(workdir / TOKENIZER) as folder:
        copy_files(tokenizer, folder)
