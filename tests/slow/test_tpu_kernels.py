"""The attention kernels compiled for TPUs that are not there: memory, work and time before.

`tests/simulated.py: report_for_tpus` runs this file as a script.
"""

import json

import pytest
import simulated

from hybrid.model.mixers.attention import mean_visible_keys

SHORT, LONG, LONGEST = 8192, 131_072, 1 << 20
KINDS = {"local": (256, 1024), "global": (512, None)}  # head_dim and window of Gemma 4
CALLS = [
    *((chip, kind, SHORT) for chip in ("v5e:2x4", "v6e:2x4", "tpu7x:2x2x1") for kind in KINDS),
    *(("v5p:2x2x2", kind, length) for kind in KINDS for length in (SHORT, LONG, LONGEST)),
]
HEADS = 8  # of one KV head, as in E2B

pytestmark = [pytest.mark.slow, simulated.NEEDS_LIBTPU]


@pytest.fixture(scope="module")
def report():
    found = simulated.report_for_tpus(__file__)
    return {(each["chip"], each["kind"], each["length"]): each for each in found}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(map(str, call)))
def test_forward_and_backward_compile_and_hold_nothing_of_the_square(report, call):
    _, kind, length = call
    head_dim, _ = KINDS[kind]
    queries = length * HEADS * head_dim * 2
    # The largest is dq in float32; scores of one head alone would be length · 2 bytes a row.
    assert report[call]["largest"] <= 2 * queries
    assert report[call]["temporaries"] < 8 * queries


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_multiplies_what_the_formula_says(report, kind):
    """Two products forward, five backward."""
    head_dim, window_size = KINDS[kind]
    for length in (LONG, LONGEST):
        pairs = length * HEADS * mean_visible_keys(window_size, length)
        found = report["v5p:2x2x2", kind, length]["flops"] / (7 * pairs * 2 * head_dim)
        assert 1 <= found < 1.1


def test_tracing_and_lowering_take_no_longer_for_longer_rows(report):
    for kind in KINDS:
        seconds = {t: report["v5p:2x2x2", kind, t]["lower_seconds"] for t in (SHORT, LONGEST)}
        assert seconds[LONGEST] < seconds[SHORT] + 1


# --- The process ------------------------------------------------------------------------------


def main():
    print(json.dumps([_compiled(*call) for call in CALLS]))


def _compiled(chip, kind, length):
    import time

    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from hybrid.costs import flops, hlo, memory
    from hybrid.ops import dispatch
    from hybrid.ops.attention import attend
    from hybrid.ops.band import Band

    device = topologies.get_topology_desc(platform="tpu", topology_name=chip).devices[0]
    head_dim, window_size = KINDS[kind]

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    def both(q, k, v, dout, segments):
        def call(q, k, v):
            return attend(q, k, v, Band.of_row(window_size, segments), implementation="pallas")

        out, pull = jax.vjp(call, q, k, v)
        return out, pull(dout)

    q, k = array(1, length, HEADS, head_dim), array(1, length, 1, head_dim)
    start = time.process_time()
    with dispatch.use_backend("tpu"):
        segments = array(1, length, dtype=jnp.int32)
        lowered = jax.jit(both).lower(q, k, k, q, segments)
    seconds = time.process_time() - start
    compiled = lowered.compile()
    program, sizes = hlo.parse(compiled.as_text()), compiled.memory_analysis()
    return {
        **{"chip": chip, "kind": kind, "length": length, "lower_seconds": seconds},
        "flops": flops.flops_by_part(program).total(),
        "largest": max(buffer.bytes for buffer in memory.largest_buffers(program)),
        "temporaries": sizes.temp_size_in_bytes,
    }


if __name__ == "__main__":
    main()
