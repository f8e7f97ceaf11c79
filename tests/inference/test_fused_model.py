"""A whole model decodes by the kernels, interpreted on a CPU, as its forward says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference.small_models import config_of, logits_of, params_of, tokens_of

from hybrid import model
from hybrid.model import cache as state
from hybrid.model.mixers.protocol import CacheFormat
from hybrid.ops import dispatch


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("unified", "value"),
        ("unified ones reused from inside a period", "value_and_rotated"),
    ],
)
def test_decoding_equals_the_forward(name, layout):
    """Five tokens, then one at a time, with donors' slots read by other layers."""
    config = config_of(name)
    tokens, plan = tokens_of(config), model.layer_plan(config)
    wanted = logits_of(config, tokens)
    form = CacheFormat(45, "float64", slack=4, unified=layout)
    cache = state.allocate(plan, form, len(tokens))
    slots = model.slot_arrays(plan, form, "float64")

    @jax.jit
    def step(params, cache, part):
        with dispatch.use_backend("tpu"):
            num_new = jnp.full(len(part), part.shape[1], jnp.int32)
            x, cache = model.extend(config, params, part, num_new, cache, slots)
            return cache, model.head(config, params, x)

    for part in (slice(0, 5), *(slice(i, i + 1) for i in range(5, tokens.shape[1]))):
        cache, logits = step(params_of(config), cache, tokens[:, part])
        np.testing.assert_allclose(logits, wanted[:, part], atol=1e-10)
