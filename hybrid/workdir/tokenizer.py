"""`tokenizer/`: a run keeps its own tokenizer, whatever becomes of the original."""

from hybrid.origin import TOKENIZER
from hybrid.process.files import whole_folder
from hybrid.process.remote import AnyPath, RemotePath


def keep(tokenizer: str, workdir: AnyPath) -> None:
    """Copies the files of `data.tokenizer` into the workdir, where they aren't there yet."""
    if tokenizer == "byte":
        return
    from hybrid.pretrained.tokenizer import FILES, copy_files  # only such runs pay for it

    own = workdir / TOKENIZER
    if (own / FILES[0]).exists():
        return
    if isinstance(own, RemotePath):
        copy_files(tokenizer, own)  # FILES[0] comes last
        return
    with whole_folder(own) as folder:
        copy_files(tokenizer, folder)
