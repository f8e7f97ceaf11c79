"""`tokenizer/`: a run keeps its own tokenizer, whatever becomes of the original."""

from hybrid.origin import TOKENIZER
from hybrid.process.files import whole_folder
from hybrid.process.remote import AnyPath, RemotePath


def keep(tokenizer: str, workdir: AnyPath) -> None:
    """Copies the files of `data.tokenizer` into the workdir, where they aren't there yet."""
    if tokenizer == "byte":
        return
    from hybrid.data.tokenizers import FILES  # only such runs pay for it
    from hybrid.pretrained.tokenizer import copy_files

    own = workdir / TOKENIZER
    if any((own / name).exists() for name in FILES):
        return
    if isinstance(own, RemotePath):
        copy_files(tokenizer, own)  # the tokenizer's own file comes last
        return
    with whole_folder(own) as folder:
        copy_files(tokenizer, folder)
