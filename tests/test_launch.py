"""The files of launch/: their syntax, and that the pages, flags and keys that they name exist."""

import pathlib
import re
import subprocess

import pytest
import yaml

from hybrid import config as config_lib
from hybrid import experiment
from hybrid.experiment import Experiment
from hybrid.training.command import COMMAND

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "launch").iterdir())
KEYS = {info.name for info in config_lib.walk(Experiment)}


def commands(file: pathlib.Path) -> str:
    return file.read_text().replace("\\\n", " ")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_syntax_is_sound(file):
    if file.suffix == ".yaml":
        assert isinstance(yaml.safe_load(file.read_text()), dict)
    else:
        subprocess.run(["bash", "-n", file], check=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_pages_flags_and_keys_exist(file):
    text = commands(file)
    assert "train.py" in text
    page = re.search(r"--config=(\S+)", text)[1]
    keys = dict(re.findall(r"--config\.([\w.]+)=(\S+)", text))
    assert keys.keys() <= KEYS
    fixed = {n: value for n, value in keys.items() if not n.startswith("distributed.")}
    experiment.load(page, fixed)
    if keys["distributed.coordinator"].strip("\"'") != "auto":
        assert {"distributed.num_processes", "distributed.process_id"} <= keys.keys()
    assert set(COMMAND.flags) == {"config", "workdir"}
    assert "--workdir=" in text


def test_the_page_names_every_file():
    page = (ROOT / "docs" / "launch.md").read_text()
    assert all(f"(../launch/{file.name})" in page for file in FILES)
