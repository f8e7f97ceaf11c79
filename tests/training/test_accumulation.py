"""The loss is a sum over all tokens divided once: micro-batches and devices change nothing.

64 rows whose predicted tokens are very unequal in number, some without any, as 1×64, 8×8 and 64×1
on one device and as 1×64 and 8×8 on eight; float64, to 1e-9. The model has experts, with both
router losses: the balance is formed of the whole step.
"""

import json

import pytest
import simulated

ROWS, TIME = 64, 8
WEIGHTS = {"z_loss": 1e-2, "load_balance_loss": 0.3, "router_z_loss": 0.1}
SPLITS = {  # mesh, micro-batches
    "one device, 8×8": ({"data": 1}, 8),
    "one device, 64×1": ({"data": 1}, 64),
    "data=8, 1×64": ({"data": 8}, 1),
    "data=8, 8×8": ({"data": 8}, 8),
    "expert=4, 1×64": ({"data": 2, "expert": 4}, 1),
    "fsdp=2 tensor=2 expert=2, 8×8": ({"data": 1, "fsdp": 2, "tensor": 2, "expert": 2}, 8),
}


@pytest.fixture(scope="module")
def report():
    return simulated.report(__file__)


def test_rows_are_unequal_enough_to_tell_means_of_means_apart(report):
    assert report["dtype"] == "float64"
    assert report["mean of means"] > 1e-3


@pytest.mark.parametrize("split", SPLITS)
def test_loss_and_every_gradient_equal_those_of_one_batch(report, split):
    assert report[split]["loss"] < 1e-9
    assert report[split]["num_leaves"] > 10
    assert report[split]["gradient"] < 1e-9


def test_a_whole_step_moves_parameters_alike(report):
    assert report["params"] < 1e-9


def test_every_router_statistic_is_that_of_the_whole_step(report):
    assert report["num_router_metrics"] == 5
    assert report["router metrics"] < 1e-9


def test_balance_formed_a_micro_batch_at_a_time_would_be_another(report):
    assert report["balance of means"] > 1e-3


# --- The process with eight devices -----------------------------------------------------------


def main():
    """Prints the errors against one batch on one device."""
    import math

    import jax
    import numpy as np

    from hybrid import model
    from hybrid.model.config import ModelConfig
    from hybrid.sharding import MeshConfig, make_mesh
    from hybrid.training import objective, step
    from hybrid.training.config import OptimizerConfig, StepConfig

    config = ModelConfig(
        pattern="LG",
        num_layers=2,
        window_size=3,
        d_model=16,
        num_heads=2,
        head_dim=8,
        ffn_dim=24,
        vocab_size=32,
        num_experts=4,
        num_active_experts=2,
        expert_dim=8,
        dtype="float64",
    )
    host_batch = _batch(config.vocab_size)

    params = jax.tree.map(
        lambda leaf: 0.3 * np.random.default_rng(leaf.size).standard_normal(leaf.shape),
        model.abstract(config),
    )

    def build(sizes, num_microbatches):
        training = StepConfig(
            batch_size=ROWS, context_length=TIME, num_microbatches=num_microbatches, **WEIGHTS
        )
        mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(sizes.values())])
        # A large eps, so that Adam's quotient doesn't blow up rounding where gradients vanish.
        return mesh, training, step.build(config, training, OptimizerConfig(eps=1e-3), mesh)

    def place(values, like):
        return jax.device_put(values, jax.tree.map(lambda leaf: leaf.sharding, like))

    def gradient(sizes, num_microbatches, *batches):
        mesh, training, program = build(sizes, num_microbatches)
        run = jax.jit(lambda *inputs: objective.loss_and_gradient(config, *inputs, training))
        results = []
        with jax.set_mesh(mesh):
            for batch in batches:
                inputs = place((params, batch), (program.state.params, program.batch))
                sums, gradients = jax.device_get(run(*inputs))
                metrics = objective.router_metrics(sums.router, training)
                metrics = jax.tree.map(np.asarray, metrics)
                results.append((sums.loss.nll / sums.loss.count, gradients, metrics))
        return results

    def moved(sizes, num_microbatches):
        mesh, _, program = build(sizes, num_microbatches)
        with jax.set_mesh(mesh):
            state, _ = program.step(
                program.init(jax.random.key(0)), place(host_batch, program.batch)
            )
        return jax.device_get(state.params)

    one, first, second = gradient({"data": 1}, 1, host_batch, *_halves(host_batch))
    result, router_errors = {}, []
    for name, split in SPLITS.items():
        ((loss, gradients, metrics),) = gradient(*split, host_batch)
        errors = jax.tree.leaves(jax.tree.map(_relative, one[1], gradients))
        result[name] = {
            "loss": abs(loss / one[0] - 1),
            "gradient": max(errors),
            "num_leaves": len(errors),
        }
        router_errors += [_relative(value, metrics[name]) for name, value in one[2].items()]
    both = moved({"data": 1}, 1), moved({"data": 8}, 8)
    result["params"] = max(jax.tree.leaves(jax.tree.map(_relative, *both)))
    result["dtype"] = str(one[1]["embedder"]["embedding"].dtype)
    result["mean of means"] = abs((first[0] + second[0]) / 2 / one[0] - 1)
    result["router metrics"], result["num_router_metrics"] = max(router_errors), len(one[2])
    name = "load_balance_loss"
    result["balance of means"] = abs((first[2][name] + second[2][name]) / 2 / one[2][name] - 1)
    print(json.dumps(jax.tree.map(lambda x: x if isinstance(x, str) else float(x), result)))


def _relative(one, other):
    import numpy as np

    return float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-12))


def _batch(vocab_size):
    import numpy as np

    from hybrid.data.batch import Batch

    rng = np.random.default_rng(0)
    # Rows without a token, rows of one, and a few full ones that repeat one token: unequal means.
    keep = rng.random((ROWS, TIME)) < np.linspace(0, 1, ROWS)[:, None] ** 3
    keep[:8], keep[-1] = False, True
    tokens = rng.integers(0, vocab_size, (ROWS, TIME), np.int32)
    targets = rng.integers(0, vocab_size, (ROWS, TIME), np.int32)
    targets[ROWS // 2 :] = tokens[ROWS // 2 :]
    return Batch(
        tokens=tokens,
        targets=targets,
        segment_ids=np.ones((ROWS, TIME), np.int32),
        positions=np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1)),
        loss_mask=keep,
    )


def _halves(batch):
    import dataclasses

    import numpy as np

    first = (np.arange(ROWS) < ROWS // 2)[:, None]
    return [
        dataclasses.replace(batch, loss_mask=batch.loss_mask & half) for half in (first, ~first)
    ]


if __name__ == "__main__":
    main()
