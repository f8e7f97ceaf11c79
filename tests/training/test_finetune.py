"""Training goes on from a folder: whole, with frozen parts, or by adapters alone."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

from hybrid import model
from hybrid.config import ConfigError
from hybrid.costs.training_flops import trained_share
from hybrid.data.batch import Batch
from hybrid.loading import api
from hybrid.loading.initial import fingerprint
from hybrid.model import lora
from hybrid.model import trained as partition
from hybrid.model.config import LORA_MODULES, LoraConfig, ModelConfig
from hybrid.model.params import is_adapter, select
from hybrid.sharding import MeshConfig, make_mesh
from hybrid.training import loop, step
from hybrid.training.config import OptimizerConfig, StepConfig
from hybrid.training.optimizer import make_optimizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(folder, workdir) of a trained run."""
    folder = tmp_path_factory.mktemp("base")
    loop.run(tiny_run.experiment_of(folder, training__num_steps=4), folder / "run")
    return folder, folder / "run"


def experiment(base, **overrides):
    keys = {"init_from": str(base[1]), "training__num_steps": 4, "optimizer__learning_rate": 1e-2}
    return tiny_run.experiment_of(base[0], **keys | overrides)


def params(workdir):
    return api.load(workdir).params


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


# --- Starting from a folder ------------------------------------------------------------------


def test_a_run_begins_with_the_parameters_of_the_folder(base, tmp_path):
    still = experiment(base, optimizer__learning_rate=0.0, training__num_steps=1)
    loop.run(still, tmp_path / "run")
    assert_equal(params(tmp_path / "run"), params(base[1]))
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    last = json.loads((base[1] / "metrics.jsonl").read_text().splitlines()[-1])
    assert first["eval/loss"] == last["eval/loss"]


def test_another_pattern_starts_from_the_folder_and_says_what_became_of_it(base, tmp_path, capsys):
    other = experiment(base, model__pattern="LLG", model__num_layers=3, training__num_steps=1)
    loop.run(other, tmp_path / "run")
    told = capsys.readouterr().err
    assert "init_from: 30 tensors mapped" in told
    assert "init_from: made mixer/q_proj/kernel of layer 2: fresh" in told


def test_a_folder_that_will_not_do_is_refused_and_nothing_is_made(base, tmp_path):
    for key, overrides in {
        "init_from": {"init_from": str(tmp_path / "nowhere")},
        "model.d_model": {"model__d_model": 24},
    }.items():
        with pytest.raises(ConfigError, match=f"^{key}: "):
            loop.run(experiment(base, **overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Adapters --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """(experiment, workdir) of a run with adapters of rank 3 on the base."""
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    config = experiment(base, lora__rank=3, optimizer__learning_rate=3e-2)
    loop.run(config, workdir)
    return config, workdir


def test_adapters_lower_the_loss_and_leave_the_base_alone(base, adapted):
    rows = [json.loads(line) for line in (adapted[1] / "metrics.jsonl").read_text().splitlines()]
    losses = [row["eval/loss"] for row in rows if "eval/loss" in row]
    start = json.loads((base[1] / "metrics.jsonl").read_text().splitlines()[-1])["eval/loss"]
    assert losses[-1] < start - 0.01
    before, after = params(base[1]), params(adapted[1])
    for name, new in _named(after).items():
        is_adapted = name.split("/")[-2] in LORA_MODULES
        assert np.array_equal(new, _named(before)[name]) != is_adapted, name


def _named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


def test_a_checkpoint_holds_the_adapters_alone(adapted):
    config, workdir = adapted
    state = step.build(
        config.model, config.training.step, config.optimizer, make_mesh(MeshConfig()), config.lora
    ).state
    trained = [
        leaf for name, leaf in _named(state.params).items() if is_adapter(tuple(name.split("/")))
    ]
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in trained)
    size = sum(f.stat().st_size for f in (workdir / "checkpoints/4/params").rglob("*"))
    whole = sum(f.stat().st_size for f in (workdir / "checkpoints/4").rglob("*"))
    assert size < whole
    kept = jax.tree.leaves(lora.adapters(state.params))
    assert len(kept) == len(trained) == 2 * 7 * 2


def test_a_resumed_run_ends_with_the_same_bits(adapted, tmp_path, monkeypatch):
    config, whole = adapted
    stop_after(monkeypatch, 2)
    with pytest.raises(loop.signals.Preempted):
        loop.run(config, tmp_path / "run")
    monkeypatch.undo()
    loop.run(config, tmp_path / "run")
    assert tiny_run.rows(tmp_path / "run") == tiny_run.rows(whole)
    assert_equal(params(tmp_path / "run"), params(whole))


def stop_after(monkeypatch, last):
    import os
    import signal

    run_due = loop.run_due

    def run_due_after_signal(events, finished):
        if finished == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_due(events, finished)

    monkeypatch.setattr(loop, "run_due", run_due_after_signal)


def test_a_base_that_is_another_or_gone_is_refused_and_nothing_changes(base, adapted, tmp_path):
    moved, workdir = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base[1], moved)
    config = dataclasses.replace(adapted[0], init_from=str(moved))
    loop.run(config, workdir)
    longer = tiny_run.with_key(config, "training", num_steps=6)
    before = tiny_run.snapshot(workdir)
    # Of the same shapes, sizes and step; only the numbers differ.
    shutil.rmtree(moved)
    loop.run(tiny_run.experiment_of(base[0], training__num_steps=4, training__seed=1), moved)
    for use in (lambda: loop.run(longer, workdir), lambda: api.load(workdir)):
        with pytest.raises(ConfigError, match="init_from: is not what the adapters were trained"):
            use()
    shutil.rmtree(moved)
    with pytest.raises(ConfigError, match="init_from: no such folder"):
        loop.run(longer, workdir)
    loop.run(config, workdir)  # finished: nothing is read
    assert tiny_run.snapshot(workdir) == before


def test_a_fingerprint_tells_values_places_and_names_apart():
    plain = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "b": jnp.ones(2, jnp.bfloat16)}
    kernel = plain["a"]["kernel"]
    others = [
        {**plain, "a": {"kernel": kernel.at[1, 2].add(1e-6)}},
        {**plain, "a": {"kernel": kernel[:, ::-1]}},
        {**plain, "a": {"kernel": kernel[::-1]}},
        {**plain, "a": {"other": kernel}},
        {**plain, "b": plain["b"].at[0].set(1.01)},
    ]
    prints = {fingerprint(tree) for tree in (plain, *others)}
    assert len(prints) == 1 + len(others)
    assert fingerprint(jax.tree.map(jnp.copy, plain)) in prints


def test_a_module_that_no_layer_has_is_refused_with_those_there():
    config = ModelConfig(pattern="G", num_layers=1, unified_kv=True)
    with pytest.raises(ConfigError, match=r"modules: .* got v_proj; some of q_proj, k_proj, o"):
        with_adapters(config, LoraConfig(rank=1, modules=("q_proj", "v_proj")))


def tiny_model(**keys):
    return ModelConfig(
        pattern="LG", num_layers=4, window_size=3, d_model=16, num_heads=2, head_dim=8,
        ffn_dim=24, vocab_size=32, **keys,
    )  # fmt: skip


def with_adapters(config, settings):
    params = model.init(config, jax.random.key(0))
    axes = model.logical_axes(config)
    return params, lora.add(settings, params, axes, jax.random.key(1))


def test_rank_0_is_the_base_itself():
    config = tiny_model()
    params, same = with_adapters(config, LoraConfig(rank=0))
    assert same is params
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    training = StepConfig(batch_size=2, context_length=8, num_steps=3)
    plain = step.build(config, training, OptimizerConfig(), mesh)
    assert step.build(config, training, OptimizerConfig(), mesh, LoraConfig()) is plain


def test_fresh_adapters_change_no_bit_and_merging_trained_ones_equals_adding_them(x64):
    config = tiny_model(dtype="float64", num_kv_shared_layers=2)
    tokens = jax.random.randint(jax.random.key(2), (2, 9), 0, 32)
    params, adapted = with_adapters(config, LoraConfig(rank=2))
    names = set(_named(adapted)) - set(_named(params))
    assert len(names) == 2 * (2 * 7 + 2 * 5)  # readers have no k_proj and v_proj
    plain = model.logits(config, params, tokens)
    np.testing.assert_allclose(model.logits(config, adapted, tokens), plain, atol=1e-12)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, adapted)
    got = model.logits(config, moved, tokens)
    merged = lora.merge(moved)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(got, model.logits(config, merged, tokens), atol=1e-10)
    assert float(jnp.abs(got - plain).max()) > 1e-2
    base = select(moved, lambda path: not is_adapter(path))
    assert_equal(lora.with_adapters(base, lora.adapters(moved)), moved)


@pytest.mark.parametrize("name", ["experts", "router", "embedding", "layer_embedding", "q_norm"])
def test_what_has_no_adapter_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"modules: has no adapter, got '?{name}"):
        LoraConfig(rank=2, modules=("q_proj", name))


def test_experts_and_embeddings_of_layers_get_no_adapters():
    config = tiny_model(num_experts=3, num_active_experts=1, expert_dim=8, layer_embedding_dim=4)
    _, adapted = with_adapters(config, LoraConfig(rank=2))
    added = {name for name in _named(adapted) if is_adapter(tuple(name.split("/")))}
    assert added
    assert not any("experts" in name or "layer_embedding" in name for name in added)


def test_adapters_need_a_base(base):
    with pytest.raises(ConfigError, match=r"lora.rank: needs a base to adapt, got 3"):
        tiny_run.experiment_of(base[0], lora__rank=3)


# --- Frozen parts ----------------------------------------------------------------------------


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (4, 9)).astype(np.int32)
    ones = np.ones((4, 8), np.int32)
    positions = np.tile(np.arange(8, dtype=np.int32), (4, 1))
    return Batch(tokens[:, :-1], tokens[:, 1:], ones, positions, ones > 0)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_frozen_parameters_keep_their_bits_and_have_no_state(name):
    config = tiny_model()
    training = StepConfig(batch_size=4, context_length=8, num_steps=3)
    optimizer = OptimizerConfig(name=name, freeze=("embedder/*", "*/mixer/*", "*_norm/scale"))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = step.build(config, training, optimizer, mesh)
        state = program.init(jax.random.key(0))
        before = jax.tree.map(np.array, state.params)
        state, metrics = program.step(state, batch())
    assert np.isfinite(metrics["loss"])
    moved = {n for n, leaf in _named(state.params).items() if (leaf != _named(before)[n]).any()}
    # One segment of two slots; layer scalars are constants.
    assert moved == {
        f"segments/0/{slot}/feed_forward/{kernel}_proj/kernel"
        for slot in (0, 1)
        for kernel in ("gate", "up", "down")
    }
    kept = {path for path in _paths(state.opt_state) if "mixer" in path or "embedder" in path}
    assert not kept


def _paths(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_frozen_run_that_was_stopped_ends_with_the_same_bits(base, tmp_path, monkeypatch):
    config = experiment(base, optimizer__freeze=("embedder/*", "*/mixer/*"))
    loop.run(config, tmp_path / "whole")
    stop_after(monkeypatch, 2)
    with pytest.raises(loop.signals.Preempted):
        loop.run(config, tmp_path / "run")
    monkeypatch.undo()
    loop.run(config, tmp_path / "run")
    assert tiny_run.rows(tmp_path / "run") == tiny_run.rows(tmp_path / "whole")
    assert_equal(params(tmp_path / "run"), params(tmp_path / "whole"))
    assert_equal(params(tmp_path / "run")["embedder"], params(base[1])["embedder"])


def test_a_pattern_without_a_match_leaves_no_token_cache_behind(base, tmp_path):
    config = experiment(base, optimizer__freeze=("embed/*",), data__cache_dir=str(tmp_path / "c"))
    with pytest.raises(ConfigError, match=r"optimizer.freeze: matches no parameter"):
        loop.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_what_is_frozen_saves_its_part_of_the_backward():
    config = dataclasses.replace(tiny_model(unroll=True), d_model=64, ffn_dim=256)
    training = StepConfig(batch_size=4, context_length=8, num_steps=3)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    flops = {}
    for rank in (0, 1):
        with jax.set_mesh(mesh):
            program = step.build(config, training, OptimizerConfig(), mesh, LoraConfig(rank=rank))
            flops[rank] = program.compiled.cost_analysis()["flops"]
        assert (trained_share(config, LoraConfig(rank=rank), ()) < 0.2) == bool(rank)
    assert flops[1] < 0.75 * flops[0]


def test_patterns_that_match_nothing_or_everything_are_refused():
    shapes = model.abstract(tiny_model())
    with pytest.raises(ConfigError, match=r"optimizer.freeze: matches no parameter, got '?embed"):
        partition.trained_mask(shapes, ("embed/*",))
    with pytest.raises(ConfigError, match=r"optimizer.freeze: leaves nothing to train"):
        partition.trained_mask(shapes, ("*",))


# --- Moments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_alone_are_kept_in_bfloat16(name):
    config, axes = tiny_model(), model.logical_axes(tiny_model())
    optimizer = OptimizerConfig(name=name, moment_dtype="bfloat16")
    state = make_optimizer(optimizer, 3, axes).init(model.init(config, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    dtypes = {(".mu" in (p := jax.tree_util.keystr(path))) or (".nu" in p): leaf.dtype.name
              for path, leaf in leaves if leaf.dtype != jnp.int32}  # fmt: skip
    assert dtypes == {True: "bfloat16"} | ({False: "float32"} if name == "muon" else {})


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        ("beta2", {"beta2": 0.999}),
        ("beta1", {"beta1": 0.995}),
        ("muon_beta", {"name": "muon", "muon_beta": 0.995}),
        ("moment_dtype", {"name": "adafactor"}),
    ],
)
def test_moments_that_bfloat16_cannot_hold_are_refused(key, keys):
    OptimizerConfig(**keys)
    with pytest.raises(ConfigError) as error:
        OptimizerConfig(moment_dtype="bfloat16", **keys)
    assert error.value.key == key


def test_a_second_moment_in_bfloat16_follows_gradients_down_as_far_as_it_is_allowed_to():
    config = OptimizerConfig(beta2=0.99, moment_dtype="bfloat16", clip_norm=0.0)
    transform = make_optimizer(config, 3, {"w": ("embed",)})
    params = {"w": jnp.zeros(200)}
    noise = np.random.default_rng(0).standard_normal((2000, 200)).astype(np.float32)

    @jax.jit
    def run(state, rows):
        step = lambda state, row: (transform.update({"w": row}, state, params)[1], None)  # noqa: E731
        return jax.lax.scan(step, state, rows)[0]

    state = transform.init(params)
    for scale in (1.0, 0.01):
        state = run(state, scale * noise)
        second = optax.tree.get(state, "nu")["w"].astype(jnp.float32)
        assert float(second.mean()) == pytest.approx(scale**2, rel=0.1)


def test_bfloat16_moments_halve_the_state_and_train_alike():
    training = StepConfig(batch_size=4, context_length=8, num_steps=40)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    losses, sizes = {}, {}
    for dtype in ("float32", "bfloat16"):
        optimizer = OptimizerConfig(moment_dtype=dtype, learning_rate=1e-2)
        with jax.set_mesh(mesh):
            program = step.build(tiny_model(), training, optimizer, mesh)
            state = program.init(jax.random.key(0))
            for _ in range(40):
                state, metrics = program.step(state, batch())
        losses[dtype] = float(metrics["loss"])
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        sizes[dtype] = sum(leaf.nbytes for leaf in moments)
    assert sizes["bfloat16"] * 2 == sizes["float32"]
    assert losses["float32"] < 2.5  # from 3.5
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
