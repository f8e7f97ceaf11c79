"""Where text comes from: files of four kinds, one sequence of documents, one fingerprint.

Read in this order: `files.py` (which files paths name), `rows.py` (what stands in one), `form.py`
and `prompts.py` (what of a row is text, and predicted), `corpus.py` (documents and their hashes),
`split.py` (which are held out), `stdlib.py`.
"""

from hybrid.data.sources.corpus import Document, Documents, Files, digest_of, documents, files_of
from hybrid.data.sources.files import matches_of, names_something
from hybrid.data.sources.prompts import form_of

__all__ = [
    "Document",
    "Documents",
    "Files",
    "digest_of",
    "documents",
    "files_of",
    "form_of",
    "matches_of",
    "names_something",
]
