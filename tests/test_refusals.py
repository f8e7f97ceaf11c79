"""Wrong configs, flags and data: one line that names the key, exit status 2, nothing created."""

import json
import pathlib
import subprocess
import sys

import pytest

from hybrid.evaluation.__main__ import main as evaluate
from hybrid.plan.__main__ import main as plan
from hybrid.training.__main__ import main as train

NAMES = {evaluate: "evaluation", plan: "plan", train: "training"}
ROOT = pathlib.Path(__file__).resolve().parent.parent

# (key in the error, overrides of configs/tiny.py); {data} is a folder of broken files.
CONFIG_CASES = [
    ("model.windw_size", ["model.windw_size=3"]),
    ("modle.pattern", ["modle.pattern=L"]),
    ("pattern", ["pattern=L"]),
    ("model.pattern", ["model.pattern=LLX"]),
    ("model.pattern", ["model.pattern="]),
    ("model.pattern", ["model.pattern=LLM"]),
    ("model.pattern", ["model.pattern=L"]),
    ("model.num_layers", ["model.num_layers=7"]),
    ("model.num_layers", ["model.num_layers=0"]),
    ("model.num_layers", ["model.num_layers=six"]),
    ("model.num_layers", ["model.num_layers=1.5"]),
    ("model.last_layer", ["model.last_layer=force"]),
    ("model.window_size", ["model.window_size=0"]),
    ("model.window_sizes", ["model.window_sizes=8,8"]),
    ("model.window_sizes", ["model.window_sizes=8,8,8,8,8,8"]),
    ("model.window_sizes", ["model.window_sizes=8,8,-1,8,8,0"]),
    ("model.window_schedule", ["model.window_schedule=((1.0, 64),)"]),
    ("training.window_schedule", ["training.window_schedule=((0.5, 8), (0.4, 64))"]),
    ("training.window_schedule", ["training.window_schedule=((0.5, 8), (0.5, 32))"]),
    ("model.num_heads", ["model.num_heads=-4"]),
    ("model.num_kv_heads", ["model.num_kv_heads=3"]),
    ("model.num_global_kv_heads", ["model.num_global_kv_heads=3"]),
    ("model.head_dim", ["model.head_dim=33"]),
    ("model.global_rope_fraction", ["model.global_rope_fraction=1.5"]),
    ("model.rope_theta", ["model.rope_theta=0"]),
    ("model.rope_theta", ["model.rope_theta=nan"]),
    ("model.unified_kv", ["model.unified_kv=maybe"]),
    ("model.dtype", ["model.dtype=float16"]),
    ("model.dtype", ["model.dtype=float64"]),
    ("model.remat", ["model.remat=half"]),
    ("model.remat_save", ["model.remat=full", "model.remat_save=scores"]),
    ("model.remat_save", ["model.remat_save=qkv"]),
    (
        "model.remat_offload",
        ["model.remat=full", "model.remat_save=qkv", "model.remat_offload=ffn_in,qkv"],
    ),
    ("model.attention", ["model.attention=pallas"]),
    ("model.attention", ["model.attention=flash"]),
    ("model.attention", ["model.attention=banded"]),
    ("model.vocab_size", ["model.vocab_size=200"]),
    ("training.batch_size", ["training.batch_size=0"]),
    ("training.num_microbatches", ["training.num_microbatches=3"]),
    ("training.num_steps", ["training.num_steps=-5"]),
    ("training.load_balance_loss", ["training.load_balance_loss=0.01"]),
    ("training.router_z_loss", ["training.router_z_loss=0.01"]),
    ("lora.rank", ["lora.rank=4"]),
    ("lora.modules", ["lora.rank=4", "lora.modules=router"]),
    ("optimizer.name", ["optimizer.name=adam"]),
    ("optimizer.freeze", ["optimizer.freeze=embed/*"]),
    ("optimizer.freeze", ["optimizer.freeze=*"]),
    ("optimizer.beta2", ["optimizer.moment_dtype=bfloat16", "optimizer.beta2=0.999"]),
    ("optimizer.learning_rate", ["optimizer.learning_rate=-1"]),
    ("optimizer.learning_rate", ["optimizer.learning_rate=fast"]),
    ("optimizer.warmup_fraction", ["optimizer.warmup_fraction=2"]),
    ("optimizer.schedule", ["optimizer.schedule=linear"]),
    ("eval.stride", ["eval.stride=1000"]),
    ("eval.context_length", ["eval.context_length=a"]),
    ("mesh", ["mesh.data=3"]),
    ("mesh", ["mesh.context=2"]),
    ("mesh", ["mesh.expert=2"]),
    ("mesh.fsdp", ["mesh.fsdp=0"]),
    ("mesh.fsdp", ["mesh.fsdp=-1"]),
    ("xla.cpu_flags", ["xla.cpu_flags=xla_nonsense=1"]),
    ("xla.cpu_flags", ["xla.cpu_flags=xla_cpu_enable_fast_math=perhaps"]),
    ("xla.tpu_flags", ["xla.tpu_flags=--xla_nonsense=1"]),
    ("compilation_cache.dir", ["compilation_cache.dir={data}/empty.txt"]),
    ("compilation_cache.min_seconds", ["compilation_cache.min_seconds=-1"]),
    ("init_from", ["init_from=somewhere"]),
    ("init_from", ["init_from={data}"]),
    ("data.source", ["data.source=web"]),
    ("data.tokenizer", ["data.tokenizer=nowhere/tokenizer.json"]),
    ("data.tokenizer", ["data.tokenizer={data}/broken.json"]),
    ("data.bos", ["data.bos=always"]),
    ("data.paths", ["data.source=text"]),
    ("data.paths", ["data.source=text", "data.paths={data}/missing*.txt"]),
    ("data.paths", ["data.source=jsonl", "data.paths={data}/broken.jsonl"]),
    ("data.paths", ["data.source=text", "data.paths={data}/empty.txt"]),
    ("data.text_field", ["data.source=jsonl", "data.paths={data}/other_field.jsonl"]),
    ("data.prompt_field", ["data.prompt_field=prompt"]),
    (
        "data.prompt_field",
        ["data.source=jsonl", "data.paths={data}/other_field.jsonl", "data.completion_field=body"],
    ),
    (
        "data.tokenizer",
        ["data.source=jsonl", "data.paths={data}/other_field.jsonl", "data.messages_field=body"],
    ),
    ("data.eval_paths", ["data.eval_paths={data}/missing.txt"]),
    ("data.paths", ["data.source=needle", "data.paths={data}/empty.txt"]),
    ("data.eval_paths", ["data.source=mqar", "data.eval_paths={data}/empty.txt"]),
    ("data.bos", ["data.source=mqar", "data.bos=never"]),
    ("eval.stride", ["data.source=needle", "model.vocab_size=300", "eval.stride=8"]),
    ("model.v_norm", ["model.v_norm=false"]),
    ("model.qk_norm", ["model.qk_norm=false"]),
    ("model.num_kv_shared_layers", ["model.num_kv_shared_layers=6"]),
    ("model.num_kv_shared_layers", ["model.num_kv_shared_layers=1"]),
    ("model.kv_shared_ffn_dim", ["model.kv_shared_ffn_dim=64"]),
    ("model.expert_dim", ["model.num_experts=4", "model.num_active_experts=2"]),
    (
        "model.num_active_experts",
        ["model.num_experts=2", "model.num_active_experts=3", "model.expert_dim=8"],
    ),
    ("model.layer_scalar", ["model.layer_scalar=on"]),
    ("init_from", ["inherit_model=true"]),
    ("data.mqar.num_pairs", ["data.source=mqar", "data.mqar.num_pairs=4,0"]),
    ("data.mqar.power", ["data.source=mqar", "data.mqar.power=0"]),
    ("training.context_length", ["data.source=mqar", "data.mqar.num_pairs=80"]),
    ("training.context_length", ["data.source=mqar", "training.context_length=33"]),
    ("eval.context_length", ["data.source=mqar", "eval.context_length=0,15"]),
    ("model.vocab_size", ["data.source=mqar", "model.vocab_size=256"]),
    ("data.needle.distances", ["data.source=needle", "data.needle.distances="]),
    ("data.needle.distances", ["data.source=needle", "data.needle.distances=far"]),
    ("data.needle.distance", ["data.source=needle", "data.needle.distance=3"]),
    ("training.context_length", ["data.source=needle", "data.needle.distances=8,255"]),
    ("eval.context_length", ["data.source=needle", "eval.context_length=2"]),
    ("model.vocab_size", ["data.source=needle", "data.needle.num_values=300"]),
]

FLAG_CASES = [
    (train, ["--workdir={new}"], "--config"),
    (train, ["--config=configs/tiny.py"], "--workdir"),
    (train, ["--config=configs/none.py", "--workdir={new}"], "--config"),
    (train, ["--config=configs/tiny.py:huge", "--workdir={new}"], "--config"),
    (train, ["--config={data}/syntax.py", "--workdir={new}"], "--config"),
    (train, ["--config={data}/empty.txt", "--workdir={new}"], "--config"),
    (train, ["--config=configs/tiny.py", "--workdir={data}/empty.txt"], "--workdir"),
    (train, ["--config=configs/tiny.py", "--workdir={new}", "--wrkdir=x"], "--wrkdir"),
    (train, ["--config=configs/tiny.py", "--workdir={new}", "extra"], "arguments"),
    (evaluate, ["--config=configs/tiny.py", "--workdir={new}"], "--workdir"),
    (evaluate, ["--config=configs/tiny.py", "--workdir={data}"], "--workdir"),
    (evaluate, ["--config=configs/tiny.py", "--pretrained={data}"], "--pretrained"),
    (plan, ["--config=configs/tiny.py", "--topology=v9:2x4"], "--topology"),
    (plan, ["--config=configs/tiny.py", "--topology=v5e:2x4", "--config.mesh.data=3"], "mesh"),
    (plan, ["--config=configs/tiny.py", "--search"], "--topology"),
    (plan, ["--config=configs/tiny.py", "--table", "--topology=v5e"], "--topology"),
    (plan, ["--config=configs/tiny.py", "--context=0"], "--context"),
    (plan, ["--config=configs/tiny.py", "--batch=many"], "--batch"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of files that are each wrong in one way."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "empty.txt").write_text("")
    (folder / "broken.json").write_text("{not json")
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "other_field.jsonl").write_text('{"body": "fine"}\n')
    (folder / "syntax.py").write_text("def get_config(:\n")
    return folder


def everything_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def assert_refused(main, words, key, capsys, *, unchanged):
    before = everything_below(unchanged)
    assert main(words) == 2
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert not out
    assert len(lines) == 1, err
    assert lines[0].startswith(f"error: {key}: ") or lines[0].startswith(f"error: {key} "), lines[0]
    assert everything_below(unchanged) == before


@pytest.mark.parametrize(("key", "overrides"), CONFIG_CASES, ids=lambda value: str(value)[:60])
def test_training_refuses_a_wrong_config(key, overrides, data, tmp_path, capsys):
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    words = [f"--config.{override.format(data=data)}" for override in overrides]
    page = ["--config=configs/tiny.py", f"--workdir={tmp_path / 'new'}", cache]
    assert_refused(train, page + words, key, capsys, unchanged=tmp_path)


@pytest.mark.parametrize(
    ("main", "words", "key"),
    FLAG_CASES,
    ids=[f"{NAMES[main]} {' '.join(words)[:60]}" for main, words, _ in FLAG_CASES],
)
def test_commands_refuse_wrong_flags(main, words, key, data, tmp_path, capsys):
    words = [word.format(data=data, new=tmp_path / "new") for word in words]
    assert_refused(main, words, key, capsys, unchanged=tmp_path)


def shell(*words, cwd):
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_shell_sees_one_line_and_status_2(tmp_path):
    page = ["--config=configs/tiny.py", "--workdir=new", "--config.model.num_kv_heads=3"]
    done = shell(str(ROOT / "train.py"), *page, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: model.num_kv_heads: must divide model.num_heads (4), got 3"
    )
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["train.py"], ["eval.py"], ["-m", "hybrid.plan"]], ids=str)
def test_help_lists_flags_and_keys(words):
    done = shell(*words, "--help", cwd=ROOT)
    assert done.returncode == 0
    for needed in ("--config", "model.window_size", "[default: 'LLLLLG']"):
        assert needed in done.stdout


def test_plan_prints_json_alone_on_standard_output():
    done = shell("-m", "hybrid.plan", "--config=configs/tiny.py", "--json", cwd=ROOT)
    assert done.returncode == 0
    assert json.loads(done.stdout)["num_params"] > 1_000_000
