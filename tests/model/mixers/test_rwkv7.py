"""Rwkv7 as a letter of the pattern."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from inference.small_models import params_of, tokens_of
from model.mixer_contract import StateMixer

from hybrid import model
from hybrid.costs import model_costs
from hybrid.costs.flops import count_flops


class TestRwkv7(StateMixer):
    """With the value residual: of its two layers, the first donates its values to the other."""

    letter = "W"
    keys: ClassVar = {"rwkv7": {"value_residual": True}}
    refused = ("num_heads", -1)

    def test_later_layers_read_the_values_of_the_first(self):
        """Where all of a value is the first layer's, the layer's own makes no difference."""
        config = self.config(pattern="W", last_layer="any", num_layers=3)
        plan, tokens = model.layer_plan(config), jnp.asarray(tokens_of(config))
        assert [mixer.donor for mixer in plan.mixers()] == [None, 0, 0]

        def change(params):
            own = params["segments"][1][0]["mixer"]
            whole = {**own, "value_bias": jnp.full_like(own["value_bias"], 1e3)}
            later = {0: {**params["segments"][1][0], "mixer": whole}}
            params = {**params, "segments": {**params["segments"], 1: later}}
            return model.hidden_states(config, params, tokens).sum()

        gradient = jax.jit(jax.grad(change))(params_of(config))["segments"]
        first, later = (gradient[segment][0]["mixer"]["v_proj"]["kernel"] for segment in (0, 1))
        assert np.any(first)
        assert not np.any(later)

    def test_the_plan_counts_the_bottleneck_of_the_residual(self):
        keys = {"pattern": "W", "last_layer": "any", "num_layers": 2}
        configs = [self.config(rwkv7={"value_residual": has}, **keys) for has in (False, True)]
        tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
        counted, planned = [], []
        for config in configs:
            forward = jax.jit(functools.partial(model.logits, config))
            compiled = forward.lower(model.abstract(config), tokens).compile()
            counted.append(count_flops(compiled.as_text()))
            planned.append(16 * model_costs.forward_flops_per_token(config, 16))
        assert counted[1] - counted[0] == planned[1] - planned[0] > 0
