"""A config page is found, run as a module, and told apart from its mistakes by line."""

import dataclasses
import os

import numpy as np
import pytest

from hybrid import experiment
from hybrid.ablate.config import SweepConfig
from hybrid.config import ConfigError, build
from hybrid.pages import load_page, split_spec

HEAD = "from hybrid import experiment\nimport os, numpy as np\n"
CONFIG = "def get_config():\n    config = experiment.defaults()\n"


def written(folder, text, name="page.py"):
    (folder / name).write_text(text)
    return str(folder / name)


def refusal(spec):
    with pytest.raises(ConfigError) as caught:
        load_page(spec)
    assert caught.value.key == "--config"
    assert "\n" not in str(caught.value)
    return str(caught.value)


# (the page, in which line it fails, what is said)
BROKEN = [
    (HEAD + CONFIG + "    config.data.cache_dir = os.environ['NO_SUCH_DIR']\n", 5,
     "KeyError: missing key 'NO_SUCH_DIR'"),
    (HEAD + "SIZES = {}\n" + CONFIG + "    return SIZES['small']\n", 6, "missing key 'small'"),
    ("\nimport no_such_module\n", 2, "ModuleNotFoundError: No module named 'no_such_module'"),
    ("def get_config(:\n    pass\n", 1, "SyntaxError"),
    ("\n\nraise SystemExit(3)\n", 3, "SystemExit: 3"),
    (HEAD + CONFIG + "    return helper()\n\ndef helper():\n    return 1 / 0\n", 8,
     "ZeroDivisionError: division by zero"),
    (HEAD + CONFIG + "    config.modle.pattern = 'L'\n", 5, 'Did you mean "model" instead'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "said"), BROKEN)
def test_what_a_page_raises_is_told_as_itself_with_its_line(tmp_path, text, line, said):
    told = refusal(written(tmp_path, text))
    assert f"the page failed in line {line} (" in told
    assert said in told
    assert os.listdir(tmp_path) == ["page.py"]


def test_only_an_argument_that_is_refused_is_no_variant(tmp_path):
    text = HEAD + "def get_config(size):\n    return {'small': os.environ['NO_SUCH_DIR']}[size]\n"
    page = written(tmp_path, text)
    assert "in line 4 (KeyError: missing key 'NO_SUCH_DIR')" in refusal(f"{page}:large")
    page = written(tmp_path, text.replace("os.environ['NO_SUCH_DIR']", "{}"))
    assert "has no variant 'large'" in refusal(f"{page}:large")
    assert "TypeError: get_config() missing 1 required" in refusal(page)


def test_a_page_may_hold_dataclasses_postponed_annotations_and_numpys_numbers(tmp_path):
    text = f"""from __future__ import annotations
import dataclasses
{HEAD}
@dataclasses.dataclass
class Size:
    width: int

def get_config():
    @dataclasses.dataclass(kw_only=True)
    class Rate:
        peak: float
    config = experiment.defaults()
    config.model.d_model = np.int64(Size(64).width)
    config.model.unified_kv = np.bool_(False)
    config.model.num_layers = np.arange(7)[6]
    config.optimizer.learning_rate = Rate(peak=np.geomspace(1e-4, 1e-2, 3)[1]).peak
    config.optimizer.eps = np.float32(0.5)
    config.eval.context_length = np.array([8, 16])
    return config
"""
    built = experiment.load(written(tmp_path, text))
    assert (built.model.d_model, built.model.num_layers, built.model.unified_kv) == (64, 6, False)
    assert built.optimizer.learning_rate == np.geomspace(1e-4, 1e-2, 3)[1]
    assert (built.optimizer.eps, built.eval.context_length) == (0.5, (8, 16))
    flat = [*vars(built.optimizer).values(), built.model.d_model, *built.eval.context_length]
    assert not [value for value in flat if isinstance(value, np.generic)]
    assert dataclasses.replace(built) == built


def test_a_sweeps_axes_may_come_from_numpy():
    rates = np.geomspace(1e-4, 1e-2, 3)
    axes = [("optimizer.learning_rate", list(rates)), ("model.window_size", 2 ** np.arange(3, 5))]
    built = build(SweepConfig, {"axes": axes})
    assert built.axes[0] == ("optimizer.learning_rate", tuple(rates.tolist()))
    assert built.axes[1] == ("model.window_size", (8, 16))
    assert {type(value) for _, values in built.axes for value in values} == {float, int}


@pytest.mark.parametrize(
    ("spec", "split"),
    [
        ("page.py", ("page.py", "")),
        ("page.py:", ("page.py", "")),
        ("page.py:31b", ("page.py", "31b")),
        ("a:b/page.py", ("a:b/page.py", "")),
        ("a:b/page.py:31b", ("a:b/page.py", "31b")),
        ("page.py:/tmp/a:b", ("page.py", "/tmp/a:b")),
        ("tiny:local", ("tiny", "local")),
        ("tiny", ("tiny", "")),
    ],
)
def test_the_argument_begins_after_the_last_py_and_colon(spec, split):
    assert split_spec(spec) == split


def test_a_page_lies_in_a_folder_with_a_colon(tmp_path):
    (tmp_path / "runs 1:30").mkdir()
    text = HEAD + "def get_config(width='8'):\n    return {'model': {'window_size': int(width)}}\n"
    page = written(tmp_path / "runs 1:30", text)
    assert load_page(page) == {"model": {"window_size": 8}}
    assert load_page(f"{page}:16") == {"model": {"window_size": 16}}


def test_a_page_may_load_another_of_its_name(tmp_path):
    (tmp_path / "base").mkdir()
    inner = written(tmp_path / "base", HEAD + CONFIG + "    return config\n")
    text = f"""import dataclasses
from hybrid.pages import load_page

def get_config():
    values = load_page({inner!r})

    @dataclasses.dataclass
    class Late:
        width: "int"
    return values
"""
    assert load_page(written(tmp_path, text)) == load_page(inner)
