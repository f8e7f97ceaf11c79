"""`hybrid.plan --topology`, `--search` and `--table`: what they tell, keep and refuse.

Compiling for a TPU takes minutes and needs libtpu (tests/slow/test_tpu_compile.py); here a process
that prints made-up figures stands in for the compiler's.
"""

import importlib.util
import json
import sys

import pytest
from test_report import run

from hybrid import experiment
from hybrid.plan import compiled, plan, topology
from hybrid.plan.budget import budget
from hybrid.plan.estimate import estimate
from hybrid.plan.grid import grid
from hybrid.plan.search import search

V5E = topology.parse("v5e:2x4")
PAGE = "--config=configs/small.py"
MESH = ["--config.mesh.data=1", "--config.mesh.fsdp=8"]
GB = 10**9
FIGURES = {
    "bytes_per_device": {
        "arguments": 4 * GB,
        "outputs": 4 * GB,
        "temporaries": 2 * GB,
        "total": 6 * GB,
    },
    "flops_by_part": {"local": 3_000 * GB, "global": 1_000 * GB},
    "collectives": [["all-gather", "local", 2 * GB], ["all-reduce", "optimizer", 1 * GB]],
    "memory_traffic": 819 * GB // 10,
    "largest_buffers": [{"bytes": GB // 2, "type": "f32[8]", "part": "local", "made_by": "mul"}],
    "lower_seconds": 2.0,
    "compile_seconds": 40.0,
}
PARTS = {"embedding_and_loss", "local", "global", "state", "experts", "optimizer", "other"}


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A stand-in for the compiler; returns how to set what it prints, and the requests so far."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    requests = tmp_path / "requests"

    def prints(figures, status=0):
        script = (
            f"import sys; open({str(requests)!r}, 'a').write(sys.stdin.read() + '\\n');"
            f"print('noise of a library'); print({json.dumps(figures)!r}); sys.exit({status})"
        )
        monkeypatch.setattr(compiled, "_COMMAND", [sys.executable, "-S", "-c", script])

    prints(FIGURES)
    seen = lambda: requests.read_text().splitlines() if requests.exists() else []  # noqa: E731
    return prints, seen


def test_json_has_what_users_script_against(compiler):
    status, out, err = run(PAGE, "--topology=v5e:2x4", "--json", *MESH)
    assert status == 0, err
    report = json.loads(out)
    assert report["num_params"] == plan("configs/small.py").num_params
    assert report["bytes_per_device"] == FIGURES["bytes_per_device"]
    assert report["fits"] is True
    assert report["flops_per_device"] == 4e12
    assert report["collective_bytes_per_device"] == {
        **dict.fromkeys(PARTS, 0),
        "total": 3 * GB,
        "local": 2 * GB,
        "optimizer": 1 * GB,
    }
    assert report["compile_seconds"] == 42
    assert report["roofline"].keys() == {
        "compute_seconds",
        "memory_seconds",
        "collective_seconds",
        "tokens_per_second_per_chip",
        "mfu",
    }


def test_doors_to_attention_are_told_for_a_chip_that_is_not_there(compiler):
    _, requests = compiler
    status, out, err = run(PAGE, "--topology=v5e:2x4", "--attention", "--json")
    assert status == 0, err
    rows = json.loads(out)
    assert [(row["kind"], row["chosen"]) for row in rows] == [
        ("local", "pallas"),
        ("global", "pallas"),
    ]
    assert rows[1]["refusals"]["banded"].startswith("needs a window")
    gemma = "--config=configs/gemma4.py:31b"
    _, out, _ = run(gemma, "--topology=v4:2x2x2", "--attention", "--json")
    assert [row["chosen"] for row in json.loads(out)] == ["pallas", "chunked"]  # head_dim 256, 512
    forced = "--config.model.attention=chunked"
    _, out, _ = run(PAGE, "--topology=v5e:2x4", "--attention", forced)
    assert out.count(": chunked") == 2
    # A config is checked for the chips that it is planned for, not for those at hand.
    _, out, _ = run(PAGE, "--topology=v5e:2x4", "--attention", "--config.model.attention=pallas")
    assert out.count(": pallas") == 2
    status, _, err = run(gemma, "--topology=v4:2x2x2", "--config.model.attention=pallas")
    assert status == 2
    assert "model.attention: does not serve the global layers (head_dim 512 > 256" in err
    assert not requests()  # nothing is compiled
    status, _, err = run(PAGE, "--attention")
    assert status == 2
    assert "--topology" in err


def test_the_function_has_the_budget_beside_the_plan(compiler):
    page = experiment.to_dict(experiment.load("configs/small.py", {"mesh.fsdp": "8"}))
    page["mesh"]["data"] = 1
    report = plan(page, topology="v5e:2x4")
    assert report.budget.fits
    assert report.to_dict().keys() >= {"num_params", "bytes_per_device", "roofline"}
    assert "roofline" not in plan(page).to_dict()


def test_the_roofline_is_the_longest_of_three(compiler):
    loaded = experiment.load("configs/small.py", {"mesh.data": "1", "mesh.fsdp": "8"})
    found = budget(loaded, V5E)
    roof = found.roofline
    assert roof["compute_seconds"] == pytest.approx(4e12 / 197e12)
    assert roof["memory_seconds"] == pytest.approx(0.1)
    assert roof["collective_seconds"] == pytest.approx((2 + 2 * 1) / 200)
    assert found.limit == "memory"
    tokens = 64 * 2048
    assert roof["tokens_per_second_per_chip"] == pytest.approx(tokens / 8 / 0.1)
    forward = plan("configs/small.py").flops_per_token
    assert roof["mfu"] == pytest.approx(3 * forward * tokens / (8 * 197e12 * 0.1))
    # Remat full: four forward passes, the head's and half of attention's products once more.
    assert 4 < 4e12 * 8 / found.flops_ratio / (forward * tokens) < 4.1


def test_a_compiled_program_is_kept_by_what_it_depends_on(compiler):
    _, requests = compiler
    run(PAGE, "--topology=v5e:2x4", *MESH)
    run(PAGE, "--topology=v5e:2x4", *MESH)
    run(PAGE, "--topology=v5e:2x4", *MESH, "--config.eval.every_steps=7")
    assert len(requests()) == 1
    run(PAGE, "--topology=v5e:2x4", *MESH, "--config.model.remat=none")
    run(PAGE, "--topology=v6e:2x4", *MESH)
    run(PAGE, "--topology=v5e:2x4", *MESH, "--context=1024")
    kinds = [json.loads(line) for line in requests()]
    assert [request["topology"] for request in kinds] == ["v5e:2x4"] * 2 + ["v6e:2x4", "v5e:2x4"]
    assert kinds[1]["config"]["model"]["remat"] == "none"
    assert kinds[3]["config"]["training"]["context_length"] == 1024


def test_flags_of_the_compiler_are_asked_for_and_make_another_program(compiler, monkeypatch):
    _, requests = compiler
    flag = "--config.xla.tpu_flags=xla_tpu_rwb_fusion=false"
    for words in ([], [flag], [flag], ["--config.xla.cpu_flags=xla_cpu_enable_fast_math=true"]):
        run(PAGE, "--topology=v5e:2x4", *MESH, *words)
    assert len(requests()) == 2
    assert json.loads(requests()[1])["config"]["xla"]["tpu_flags"] == ["xla_tpu_rwb_fusion=false"]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_rwb_fusion=false")
    run(PAGE, "--topology=v5e:2x4", *MESH)
    assert len(requests()) == 3


def test_a_flag_that_the_compiler_does_not_take_exits_2(compiler):
    prints, _ = compiler
    prints({"refused": ["xla.tpu_flags", "is refused by XLA", "xla_x=1", ""]})
    status, out, err = run(PAGE, "--topology=v5e:2x4", *MESH, "--config.xla.tpu_flags=xla_x=1")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == "error: xla.tpu_flags: is refused by XLA, got xla_x=1"


def test_what_does_not_fit_is_told_as_such(compiler):
    prints, _ = compiler
    prints({"needed": 20 * 2**30})
    status, out, _ = run(PAGE, "--topology=v5e:2x4", "--json", *MESH)
    report = json.loads(out)
    assert (status, report["fits"]) == (0, False)
    assert report["bytes_per_device"]["total"] == 20 * 2**30
    assert report["roofline"] is None
    _, out, _ = run(PAGE, "--topology=v5e:2x4", *MESH)
    assert "DOES NOT FIT in 16.00 GiB" in out


def test_the_table_names_parts_buffers_and_the_limit(compiler):
    _, out, err = run(PAGE, "--topology=v5e:2x4", *MESH)
    for text in ("fits in 16.00 GiB", "f32[8]", "limited by memory", "all-gather", "optimizer"):
        assert text in out
    assert "compiling the train step for v5e:2x4" in err


def test_what_libtpu_refuses_exits_2_and_a_crash_does_not(compiler):
    prints, _ = compiler
    prints(
        {"refused": ["--topology", "libtpu refuses it (v5e:3x3 is not divisible)", "v5e:3x3", ""]}
    )
    status, _, err = run(
        PAGE, "--topology=v5e:3x3", "--config.mesh.data=9", "--config.training.batch_size=9"
    )
    assert status == 2
    assert "error: --topology: libtpu refuses it (v5e:3x3 is not divisible)" in err
    prints({}, status=3)
    with pytest.raises(RuntimeError, match="ended with 3"):
        run(PAGE, "--topology=v5e:2x4", *MESH)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, out, err = run(PAGE, "--topology=v5e:2x4", *MESH)
    assert (status, out) == (2, "")
    assert "error: --topology: needs the package libtpu" in err
    assert "pip install" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "name",
    ["v5e", "v5e:", "v5e:8", "v5e:2x2x2", "v5p:4x4", "v9:2x2", "v5e:0x4", "h100:8", "v5e:2X4"],
)
def test_what_is_no_slice_is_refused_by_name(name):
    status, out, err = run(PAGE, f"--topology={name}", *MESH)
    assert (status, out) == (2, "")
    assert err.startswith("error: --topology: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("mesh", "key"),
    [
        (["mesh.data=3"], "mesh"),
        (["mesh.data=1", "mesh.tensor=8"], "model.num_heads"),
        (["training.batch_size=12"], "training.batch_size"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused_before_anything_is_compiled(mesh, key, compiler):
    _, requests = compiler
    status, _, err = run(PAGE, "--topology=v5e:2x4", *(f"--config.{each}" for each in mesh))
    assert status == 2
    assert err.startswith(f"error: {key}: ")
    assert not requests()


def test_devices_of_a_slice():
    assert topology.parse("v5p:4x4x4").num_devices == 64
    assert topology.parse("tpu7x:2x2x1").num_devices == 8  # two a chip
    share = topology.parse("tpu7x:2x2x1").chip.device()
    assert (share.flops, share.memory) == (2307e12 / 2, 96 * 2**30)


# --- Without a compiler ------------------------------------------------------------------------


def test_the_state_of_a_device_is_counted_exactly():
    """AdamW in float32: parameters and two moments, all of them split eight ways by fsdp."""
    loaded = experiment.load("configs/small.py", {"mesh.data": "1", "mesh.fsdp": "8"})
    params = plan("configs/small.py").num_params
    state = estimate(loaded, V5E).bytes_per_device["state"]
    assert state == pytest.approx(3 * 4 * params / 8, rel=0.01)


def test_remat_and_parts_trade_memory():
    def total(**overrides):
        keys = {"mesh.data": "1", "mesh.fsdp": "8"} | overrides
        return estimate(experiment.load("configs/small.py", keys), V5E).bytes_per_device["total"]

    none, dots, full = (total(**{"model.remat": name}) for name in ("none", "dots", "full"))
    assert none > dots > full
    assert total(**{"model.remat": "none", "training.num_microbatches": "4"}) < none


def test_a_search_ranks_what_divides_and_compiles_the_best(compiler):
    _, requests = compiler
    loaded = experiment.load("configs/small.py")
    found = search(loaded, V5E, num_compiled=2)
    assert [each.compiled is not None for each in found[:3]] == [True, True, False]
    assert len(requests()) == 2
    fits = [each.estimated.fits for each in found]
    assert fits == sorted(fits, reverse=True)
    seconds = [each.estimated.step_seconds for each in found if each.estimated.fits]
    assert seconds == sorted(seconds)
    for each in found:
        mesh = each.experiment.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor * mesh.context == 8
        assert loaded.model.num_heads % mesh.tensor == 0


def test_search_prints_the_best_and_json_has_all(compiler):
    status, out, _ = run(PAGE, "--topology=v5e:2x4", "--search", "--compile=1")
    assert status == 0
    assert out.count("compiled") == 1
    _, out, _ = run(PAGE, "--topology=v5e:2x4", "--search", "--compile=0", "--json")
    first = json.loads(out)[0]
    assert first.keys() == {"mesh", "remat", "num_microbatches", "estimated", "compiled"}
    assert first["compiled"] is None


def test_the_grid_crosses_window_ratio_context_and_mesh():
    loaded = experiment.load("configs/small.py")
    cells = grid(loaded, V5E)
    assert {cell.pattern for cell in cells} == {"G", "LG", "LLLLLG"}
    assert {cell.context for cell in cells} == {8192, 32_768, 131_072, 262_144}
    caches = {
        (cell.pattern, cell.window): cell.cache_bytes for cell in cells if cell.context == 131_072
    }
    assert caches["LLLLLG", 512] < caches["LLLLLG", 4096] < caches["LG", 4096] < caches["G", 0]


def test_the_table_needs_no_topology():
    status, out, _ = run(PAGE, "--table")
    assert status == 0
    assert "a train step on v5p:4x4x4" in out
    _, out, _ = run(PAGE, "--table", "--topology=v5e:2x4", "--json")
    assert json.loads(out)[0].keys() >= {"pattern", "window", "context", "mesh", "estimated"}
