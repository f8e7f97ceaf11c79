"""cuDNN is asked for what a band says: proven without its kernels, which need a GPU.

Values and gradients are those of `jax.nn` on a CPU, given the same arguments; what reaches cuDNN is
read in the program as it is lowered for CUDA. `tests/slow/test_gpu_attention.py` runs the kernels.
"""

import dataclasses
import json
import re

import attention_contract as contract
import jax
import jax.numpy as jnp
import pytest
from cases import OFFSETS, SMALL
from jax._src.cudnn import fused_attention_stablehlo

from hybrid.ops import dispatch
from hybrid.ops.attention import ATTENTION, attend, cudnn
from hybrid.ops.band import Band

HOPPER = "NVIDIA H100 80GB HBM3"
SERVED = {"backend": "gpu", "device_kind": HOPPER, "dtype": "bfloat16", "head_dim": 256}


@pytest.fixture
def on_gpu():
    with dispatch.use_backend("gpu", HOPPER):
        yield


@pytest.fixture
def stand_in(on_gpu, monkeypatch):
    """What cuDNN would be asked for is computed by XLA, in float32 too."""

    def on_cpu(*arrays, implementation, **options):
        assert implementation == "cudnn"
        return jax_nn(*arrays, implementation="xla", **options)

    jax_nn = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    monkeypatch.setattr(cudnn, "_DTYPES", ("float32",))
    jax.clear_caches()


@pytest.mark.usefixtures("stand_in")
class TestArguments(contract.AttentionBehaviour):
    implementation = "cudnn"

    def serves(self, case):
        other = case.documents or case.softcap or case.sinks or case.offset or case.extra_keys
        return not other and case.time > 1

    def serves_positions(self):
        return False

    @pytest.mark.parametrize("case", [*SMALL, *OFFSETS], ids=lambda case: case.name)
    def test_equal_the_oracle(self, case):
        if self.served(case):
            got, wanted = (contract.run_case(case, name) for name in ("cudnn", "reference"))
            contract.assert_equal_to_the_oracle(got, wanted, contract.FLOAT32)


@pytest.mark.parametrize(
    ("window_size", "mistake"),
    [
        (None, {"is_causal": False}),  # XLA's window is closed on the right without it
        (8, {"local_window_size": (8, 0)}),
        (8, {"local_window_size": None}),
        (8, {"scale": 1}),
    ],
)
def test_planted_mistakes_are_noticed(window_size, mistake, stand_in, monkeypatch):
    case = dataclasses.replace(SMALL[0], window_size=window_size, scale=0.5)
    right = jax.nn.dot_product_attention
    wanted = contract.run_case(case, "reference")
    contract.assert_equal_to_the_oracle(contract.run_case(case, "cudnn"), wanted, contract.FLOAT32)
    wrong = lambda *arrays, **options: right(*arrays, **(options | mistake))  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", wrong)
    jax.clear_caches()
    got = contract.run_case(case, "cudnn")
    with pytest.raises(AssertionError, match="off by"):
        contract.assert_equal_to_the_oracle(got, wanted, contract.FLOAT32)


@pytest.mark.parametrize(
    ("window_size", "length"), [(None, 0), (64, 64), (1, 1), (127, 127), (128, 0), (500, 0)]
)
def test_cudnn_is_given_the_mask_the_window_and_the_scale(window_size, length, on_gpu, monkeypatch):
    """Its window counts the token itself, as ours does; 0 is none."""
    for call in lowered_calls(window_size, monkeypatch):
        assert call["mask_type"] == "CAUSAL"
        assert call["sliding_window_length"] == length
        assert call["fmha_scale"] == 0.5
        assert call["max_seg_per_batch"] == 1
        assert call["dropout_rate"] == 0
        assert call["intermediate_tensor_shape"]["element_type"] == "BF16"


def lowered_calls(window_size, monkeypatch):
    """What the forward and the backward call are configured to, as lowered for a Hopper."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    for name in ("check_compute_capability", "is_cuda_compute_capability_equal"):
        monkeypatch.setattr(fused_attention_stablehlo, name, lambda version: version == "9.0")
    q, k = (jax.ShapeDtypeStruct((2, 128, heads, 256), jnp.bfloat16) for heads in (4, 2))

    def loss(q, k, v):
        out = attend(q, k, v, Band.of_row(window_size), scale=0.5, implementation="cudnn")
        return jnp.sum(out.astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r'custom_call @(\S+?)\(.*?backend_config = "(.*?)"[,}]', text)
    assert [name for name, _ in calls] == [f"__cudnn$fmhaSoftmax{end}" for end in ("", "Backward")]
    configs = [json.loads(config.replace("\\22", '"')) for _, config in calls]
    return [config["cudnn_fmha_backend_config"] for config in configs]


# --- The door ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": "tpu", "device_kind": "TPU v5"}, "NVIDIA's GPUs"),
        ({"backend": "cpu", "device_kind": "cpu"}, "NVIDIA's GPUs"),
        ({"device_kind": "AMD Instinct MI300X"}, "NVIDIA's GPUs"),
        ({"device_kind": "Tesla V100-SXM2-16GB"}, "NVIDIA's GPUs"),
        ({"dtype": "float32"}, "float32: it takes bfloat16 and float16"),
        ({"head_dim": 100}, "head_dim 100 is no multiple of 8"),
        ({"head_dim": 512, "window_size": None}, "head_dim 512 > 256 on NVIDIA H100"),
        ({"device_kind": "NVIDIA A100-SXM4-80GB"}, "head_dim 256 > 128 on NVIDIA A100"),
        ({"device_kind": "NVIDIA B200"}, "head_dim 256 > 128 on NVIDIA B200"),
        ({"device_kind": ""}, "head_dim 256 > 128 on a device that is not known"),
        ({"has_segments": True}, "packed documents"),
        ({"is_regular": False}, "explicit positions"),
        ({"is_regular": False, "num_parts": 4}, "explicit positions"),
        ({"offset": 8, "key_length": 1032}, "not the same tokens"),
        ({"key_length": 1032}, "not the same tokens"),
        ({"query_length": 1, "key_length": 1}, "no row of one token"),
        ({"softcap": 50.0}, "no softcap"),
        ({"has_sinks": True}, "no sinks"),
    ],
)
def test_what_it_does_not_serve_is_refused_in_words(changes, reason):
    request = contract.request(**(SERVED | changes))
    assert reason in ATTENTION.explain(request)["cudnn"]
    assert ATTENTION.choose(request).name != "cudnn"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_size": None},
        {"dtype": "float16"},
        *({"device_kind": f"NVIDIA {name}"} for name in ("H200", "H20", "GH200 480GB", "H800")),
        {"device_kind": "NVIDIA A100-SXM4-80GB", "head_dim": 128},
        {"device_kind": "", "head_dim": 64},
    ],
)
def test_it_comes_first_where_it_serves(changes):
    assert ATTENTION.choose(contract.request(**(SERVED | changes))).name == "cudnn"
