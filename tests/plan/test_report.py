"""`hybrid.plan(...)` and `python -m hybrid.plan`: fields, defaults, overrides and errors."""

import contextlib
import io
import json
import subprocess
import sys

import pytest

from hybrid import experiment
from hybrid.config import ConfigError
from hybrid.plan import PlanReport, plan
from hybrid.plan.__main__ import main

FIELDS = {
    "num_params",
    "num_active_params",
    "flops_per_token",
    "kv_cache_bytes",
    "kv_cache_bytes_all_global",
    "kv_cache_ratio",
}
CONFIG = {
    "model": {
        "pattern": "LG",
        "num_layers": 2,
        "window_size": 4,
        "d_model": 8,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "global_head_dim": 8,
        "unified_kv": True,
        "ffn_dim": 16,
        "vocab_size": 32,
    },
    "training": {"context_length": 8},
}


def run(*arguments):
    """Exit status, standard output and standard error of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    return status, out.getvalue(), err.getvalue()


def test_every_figure_of_a_model_that_fits_on_paper():
    report = plan(CONFIG)
    # q, k, v, o and feed-forward; the global layer projects keys and values once.
    local_params = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    global_params = 8 * 16 + 8 * 8 + 16 * 8 + 3 * 8 * 16
    # Four norms of the stream, q and k norms and the scalar in each layer; the final norm.
    small = 2 * 4 * 8 + 2 * (4 + 8) + 2 + 8
    assert report.num_params == local_params + global_params + small + 32 * 8
    assert report.num_active_params == report.num_params
    # Position i of 0..7 sees min(i + 1, 4) keys in the local layer, i + 1 in the global one.
    pairs = (1 + 2 + 3 + 4 * 5) * 4 * 2 * 4 + 36 * 4 * 2 * 8
    products = 2 * (local_params + global_params + 32 * 8)
    assert report.flops_per_token == products + pairs / 8
    assert report.kv_cache_bytes == {
        "total": 4 * 2 * 4 * 4 + 8 * 8 * 4,
        "local": 4 * 2 * 4 * 4,  # four tokens, keys and values of width 4, float32
        "global": 8 * 8 * 4,  # eight tokens, one tensor of width 8
        "state": 0,
    }
    assert report.kv_cache_bytes_all_global == 8 * 2 * (4 + 8) * 4
    assert report.kv_cache_ratio == pytest.approx(768 / 384)


def test_context_and_batch_are_arguments():
    once, twice = plan(CONFIG, context=16), plan(CONFIG, context=16, batch=2)
    assert (once.context, twice.batch) == (16, 2)
    assert twice.kv_cache_bytes["total"] == 2 * once.kv_cache_bytes["total"]
    assert twice.flops_per_token == once.flops_per_token
    assert plan(CONFIG).context == 8


def test_caches_may_have_a_dtype_of_their_own():
    half = plan({**CONFIG, "inference": {"cache_dtype": "bfloat16"}})
    assert 2 * half.kv_cache_bytes["total"] == plan(CONFIG).kv_cache_bytes["total"]
    computed = plan({**CONFIG, "model": {**CONFIG["model"], "dtype": "bfloat16"}})
    assert computed.kv_cache_bytes == half.kv_cache_bytes
    assert computed.num_params == half.num_params


def test_a_page_by_name_with_its_argument():
    all_global = plan("configs/tiny.py:global")
    assert isinstance(all_global, PlanReport)
    assert all_global.kv_cache_bytes["local"] == 0
    assert plan("configs/tiny.py").kv_cache_bytes["local"] > 0
    assert plan("configs/small.py").num_params == pytest.approx(100e6, rel=0.15)
    assert 1e6 < plan("configs/tiny.py").num_params < 5e6


def test_a_config_dict_is_the_same_as_its_page():
    page = experiment.defaults()
    page.model.num_layers = 12
    assert plan(page) == plan({"model": {"num_layers": 12}})


@pytest.mark.parametrize("name", ["context", "batch"])
def test_nothing_is_planned_for_no_tokens(name):
    with pytest.raises(ConfigError, match=f"--{name}: must be at least 1"):
        plan(CONFIG, **{name: 0})


# --- The command ------------------------------------------------------------------------------


def test_json_is_the_report():
    status, out, _ = run("--config=configs/tiny.py", "--context=1024", "--batch=2", "--json")
    assert status == 0
    assert json.loads(out) == json.loads(
        json.dumps(plan("configs/tiny.py", context=1024, batch=2).to_dict())
    )
    assert json.loads(out).keys() >= FIELDS


def test_overrides_reach_the_plan():
    arguments = ["--config.model.num_layers=12", "--config.inference.cache_dtype=int8"]
    _, out, _ = run("--config=configs/tiny.py", "--json", *arguments)
    figures = json.loads(out)
    assert figures["segments"] == [["LLLLLG", 2]]
    assert figures["cache_dtype"] == "int8"


def test_the_table_shows_segments_and_who_attends():
    arguments = ["--config.model.num_layers=14", "--config.model.last_layer=force_global"]
    status, out, _ = run("--config=configs/tiny.py", *arguments)
    assert status == 0
    assert "LLLLLG × 2 + LG × 1" in out
    assert f"{plan('configs/tiny.py').params_by_part['embedding']:,}" in out
    table = out[out.index("attention on cpu") :]
    assert [line.split()[:2] for line in table.splitlines()[1:3]] == [
        ["local", "chunked"],
        ["global", "chunked"],
    ]


def test_a_forced_implementation_is_shown_as_such():
    _, out, _ = run("--config=configs/tiny.py", "--config.model.attention=reference")
    assert "local              reference (forced by model.attention)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search"], "error: --topology: is required"),
        (["--search", "--topology=v5e:2x4", "--compile=-1"], "error: --compile: must be"),
        (["--topology=v5e:2x4", "--context=0"], "error: --context: must be at least 1, got 0"),
        (["--context=0"], "error: --context: must be at least 1, got 0"),
        (
            ["--context=4096", "--config.model.learned_positions=1024"],
            "error: --context: is longer than the table of positions, got 4096; at most model.",
        ),
        (["--context=many"], "error: --context: "),
        (["--config.model.num_layer=3"], "did you mean model.num_layers?"),
        (["--config.inference.cache_dtype=int4"], "error: inference.cache_dtype: "),
    ],
)
def test_wrong_arguments_exit_2_with_one_line(arguments, message):
    status, out, err = run("--config=configs/tiny.py", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_config_exits_2():
    assert run()[0] == 2


CALLABLE = """
import hybrid
import hybrid.plan
import hybrid.plan.__main__
from hybrid.plan import table
print(hybrid.plan({}, context=64).context)
"""


def test_plan_stays_callable_after_its_command_was_imported():
    """In a process of its own, where nothing else was imported before."""
    child = subprocess.run([sys.executable, "-c", CALLABLE], capture_output=True, text=True)
    assert child.stdout == "64\n", child.stderr
