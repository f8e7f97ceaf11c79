"""A file is there whole or not at all."""

import io
import os

import numpy as np
import pytest

from hybrid.process.files import write_whole


def test_a_file_that_could_not_be_written_whole_is_not_there(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "result.json", fail)
    assert os.listdir(tmp_path) == []


def test_a_result_written_to_a_link_or_a_pipe_leaves_it_one(tmp_path):
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_text("old")
    link.symlink_to(target)
    os.mkfifo(pipe)
    write_whole(link, lambda file: file.write(b"new"))
    assert link.is_symlink()
    assert target.read_text() == "new"
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, lambda file: np.save(file, np.arange(3)))
    assert pipe.is_fifo()
    assert np.load(io.BytesIO(os.read(reader, 1000))).tolist() == [0, 1, 2]
    os.close(reader)


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_whole(tmp_path / "text", "naïve")
    write_whole(tmp_path / "bytes", b"\x00")
    assert (tmp_path / "text").read_bytes() == "naïve".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00"
