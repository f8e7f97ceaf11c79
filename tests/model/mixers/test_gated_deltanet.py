"""GatedDeltaNet as a letter of the pattern."""

from typing import ClassVar

import pytest
from jax.sharding import AbstractMesh
from model.mixer_contract import StateMixer

from hybrid.config import ConfigError
from hybrid.sharding import MESH_AXES


class TestGatedDeltaNet(StateMixer):
    """With two heads of values for one of queries and keys."""

    letter = "D"
    keys: ClassVar = {"delta": {"num_heads": 4, "num_key_heads": 2, "value_dim": 6}}
    refused = ("num_key_heads", 3)

    @pytest.mark.parametrize(
        ("tensor", "heads", "wrong"), [(3, (6, 2), "num_key_heads"), (3, (4, 2), "num_heads")]
    )
    def test_a_mesh_that_splits_a_head_is_refused_by_key(self, tensor, heads, wrong):
        mesh = AbstractMesh((1, 1, tensor, 1, 1), MESH_AXES)
        sizes = {"num_heads": 6, "num_kv_heads": 1, "vocab_size": 42}
        keys = dict(zip(("num_heads", "num_key_heads"), heads, strict=True))
        message = f"model.delta.{wrong}: must be a multiple of mesh.tensor"
        with pytest.raises(ConfigError, match=message):
            self.experiment(delta=keys, **sizes).check_mesh(mesh)
        self.experiment(delta={"num_key_heads": 3}, **sizes).check_mesh(mesh)
