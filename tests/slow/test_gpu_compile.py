"""Attention and experts compiled for an H100 that is not there: memory, work and calls.

`tests/simulated.py: report_for_gpus` runs this file as a script. XLA compiles for a GPU from a
description of it; cuDNN's own plans are made on the card, so their workspace is not in these sizes.
"""

import importlib.util
import json

import pytest
import simulated

KIND = "NVIDIA H100 80GB HBM3"
# What the compiler reads of a GPU: xla/backends/gpu/target_config/specs/h100_sxm.txtpb.
H100 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" device_description_str: "{KIND}"
dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 13 }}
"""
KINDS = {"local": (256, 1024), "global": (512, None)}  # head_dim and window of Gemma 4
HEADS = 8  # of one KV head, as in E2B
# Tokens, width, width of an expert, experts, of which a token has: 26B-A4B of Gemma 4, a small one.
EXPERTS = {"26B-A4B": (8192, 2816, 704, 128, 8), "16 experts": (8192, 1024, 512, 16, 2)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not importlib.util.find_spec("jax_cuda13_plugin"), reason="needs jax[cuda13]"
    ),
]


@pytest.fixture(scope="module")
def report():
    return simulated.report_for_gpus(__file__)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [8192, 32_768])
def test_tiles_hold_nothing_of_the_square(report, kind, length):
    head_dim, _ = KINDS[kind]
    found = report[f"chunked {kind} {length}"]
    queries = length * HEADS * head_dim * 2
    assert found["largest"] <= 2 * queries
    assert found["temporaries"] < 4.2 * queries
    assert 1 <= found["flops"] < {"local": 1.51, "global": 1.07}[kind]


def test_cudnn_is_called_once_each_way_and_splits_by_heads(report):
    calls = ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert report["cudnn"]["calls"] == report["cudnn on a mesh"]["calls"] == calls
    assert report["cudnn"]["collectives"] == 0
    assert report["cudnn on a mesh"]["collectives"] == 1  # the gradient of the one KV head


@pytest.mark.parametrize("sizes", EXPERTS)
def test_experts_cost_what_is_chosen_and_not_what_is_there(report, sizes):
    assert 1 <= report[sizes]["flops"] < 1.51
    assert report[sizes]["temporaries"] < 6 * 2**30


# --- The process ------------------------------------------------------------------------------


def main():
    import jax

    from hybrid.ops import dispatch

    devices = _devices()
    report = {}
    with dispatch.use_backend("gpu", KIND):
        for length in (8192, 32_768):
            for kind in KINDS:
                report[f"chunked {kind} {length}"] = _attention("chunked", kind, length, devices[0])
        report["cudnn"] = _attention("cudnn", "local", 8192, devices[0])
        with jax.set_mesh(_mesh(devices)):
            report["cudnn on a mesh"] = _attention("cudnn", "local", 8192, None)
        report |= {name: _experts(*sizes, devices[0]) for name, sizes in EXPERTS.items()}
    print(json.dumps(report))


def _devices():
    from jax._src.cudnn import fused_attention_stablehlo
    from jax.experimental import topologies

    # jax asks the card at hand, and there is none.
    fused_attention_stablehlo.check_compute_capability = lambda version: version == "9.0"
    options = {"topology": "1x1x4", "target_config": H100}
    return topologies.get_topology_desc("h100", "cuda", **options).devices


def _mesh(devices):
    from hybrid.sharding import MeshConfig, make_mesh

    return make_mesh(MeshConfig(data=2, tensor=2), devices)


def _shaped(device, names, dtype, *shape):
    import jax
    from jax.sharding import NamedSharding, SingleDeviceSharding

    from hybrid import sharding

    if device:
        place = SingleDeviceSharding(device)
    else:
        mesh = sharding.active_mesh()
        place = NamedSharding(mesh, sharding.spec_of(mesh, names, shape))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def _attention(name, kind, length, device):
    import jax
    import jax.numpy as jnp

    from hybrid.model.mixers.attention import mean_visible_keys
    from hybrid.ops.attention import attend
    from hybrid.ops.band import Band

    head_dim, window_size = KINDS[kind]
    rows = 1 if device else 2
    q, k = (
        _shaped(device, ("batch", None, axis, None), jnp.bfloat16, rows, length, heads, head_dim)
        for axis, heads in (("heads", HEADS), (None, 1))
    )
    segments = _shaped(device, ("batch", None), jnp.int32, rows, length)

    def both(q, k, v, dout, segments):
        band = Band.of_row(window_size, segments if name == "chunked" else None)
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, band, implementation=name), q, k, v)
        return out, pull(dout)

    formula = 7 * length * HEADS * mean_visible_keys(window_size, length) * 2 * head_dim
    return _found(both, (q, k, k, q, segments), formula)


def _experts(tokens, width, expert_width, num_experts, num_active, device):
    import jax
    import jax.numpy as jnp

    from hybrid.ops.experts import experts

    def shaped(*shape, dtype=jnp.float32):
        return _shaped(device, None, dtype, *shape)

    def both(x, choice, weights, gate, up, down, dout):
        call = lambda x, *rest: experts(x, choice, *rest)  # noqa: E731
        out, pull = jax.vjp(call, x, weights, gate, up, down)
        return out, pull(dout)

    x = shaped(1, tokens, width, dtype=jnp.bfloat16)
    choice = shaped(1, tokens, num_active, dtype=jnp.int32)
    into = shaped(num_experts, width, expert_width)
    down = shaped(num_experts, expert_width, width)
    weights = shaped(1, tokens, num_active, dtype=jnp.bfloat16)
    formula = 9 * tokens * num_active * width * expert_width * 2
    return _found(both, (x, choice, weights, into, into, down, x), formula)


def _found(function, operands, formula):
    import re

    import jax

    from hybrid.costs import flops, hlo, memory

    compiled = jax.jit(function).lower(*operands).compile()
    text = compiled.as_text()
    program = hlo.parse(text)
    return {
        "flops": flops.flops_by_part(program).total() / formula,
        "largest": max(buffer.bytes for buffer in memory.largest_buffers(program)),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "calls": re.findall(r'custom_call_target="(__cudnn\S*)"', text),
        "collectives": len(re.findall(r" (?:all-\w+|collective-\w+)(?:-start)?\(", text)),
    }


if __name__ == "__main__":
    main()
