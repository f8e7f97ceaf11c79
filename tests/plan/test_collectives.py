"""Bytes from other devices: by what a program does, by part, each collective once."""

import pytest

from hybrid.costs import hlo, memory
from hybrid.costs.collectives import by_operation, by_part, collective_bytes

SUM = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""


def scope(path):
    return f'metadata={{op_name="jit(step)/{path}/dot_general" stack_frame_id=1}}'


def count(body, others=""):
    text = f"HloModule m\n{SUM}{others}\nENTRY %main (x: f32[8,64]) -> f32[8,64] {{\n{body}\n}}\n"
    return dict(collective_bytes(hlo.parse(text)))


def test_gathers_count_their_result_and_reductions_their_operand():
    counted = count(f"""
  %x = f32[8,64]{{1,0}} parameter(0)
  %g = f32[64,64]{{1,0}} all-gather(%x), dimensions={{0}}, {scope("jvp(local)")}
  %s = f32[8,64]{{1,0}} reduce-scatter(%g), to_apply=%add, {scope("transpose(jvp(global))")}
  %a = bf16[8,64]{{1,0}} all-to-all(%s), dimensions={{0}}, {scope("jvp(local)/experts")}
  ROOT %r = f32[8,64]{{1,0}} all-reduce(%a), to_apply=%add, {scope("optimizer")}
""")
    assert counted == {
        ("all-gather", "local"): 64 * 64 * 4,
        ("reduce-scatter", "global"): 64 * 64 * 4,
        ("all-to-all", "experts"): 8 * 64 * 2,
        ("all-reduce", "optimizer"): 8 * 64 * 2,
    }


def test_an_asynchronous_pair_counts_once():
    counted = count(f"""
  %x = f32[8,64]{{1,0}} parameter(0)
  %s = (f32[8,64]{{1,0}}, f32[64,64]{{1,0}}) all-gather-start(%x), {scope("jvp(loss)")}
  %d = f32[64,64]{{1,0}} all-gather-done(%s)
  %c = (f32[8,64]{{1,0}}, f32[8,64]{{1,0}}, u32[], u32[]) collective-permute-start(%x), \
source_target_pairs={{{{0,1}}}}, {scope("jvp(loss)")}
  ROOT %e = f32[8,64]{{1,0}} collective-permute-done(%c)
""")
    assert counted == {
        ("all-gather", "embedding_and_loss"): 64 * 64 * 4,
        ("collective-permute", "embedding_and_loss"): 8 * 64 * 4,
    }


def test_a_wrapped_collective_counts_once():
    wrapped = """
%wrapped (p: f32[8,64]) -> f32[8,64] {
  %p = f32[8,64]{1,0} parameter(0)
  ROOT %w = f32[8,64]{1,0} all-to-all(%p), dimensions={0}
}
"""
    counted = count(
        f"""
  %x = f32[8,64]{{1,0}} parameter(0)
  %s = ((f32[8,64]{{1,0}}), f32[8,64]{{1,0}}, u32[]) async-start(%x), calls=%wrapped, \
{scope("jvp(local)")}
  ROOT %d = f32[8,64]{{1,0}} async-done(%s)
""",
        wrapped,
    )
    assert counted == {("all-to-all", "local"): 8 * 64 * 4}


PIECE = """
%piece.NUMBER (p: f32[8,64]) -> f32[64,64] {
  %p.NUMBER = f32[8,64]{1,0} parameter(0)
  ROOT %g.NUMBER = f32[64,64]{1,0} all-gather(%p.NUMBER), channel_id=7, dimensions={0}, \
frontend_attributes={chain_id="3"}, metadata={op_name="jit(step)/jvp(local)/dot_general"}
}
"""


def test_a_collective_that_is_cut_over_fusions_counts_once():
    fusions = "".join(
        f"  %f.{number} = f32[64,64]{{1,0}} fusion(%x), kind=kCustom, calls=%piece.{number}\n"
        for number in (1, 2, 3)
    )
    pieces = "".join(PIECE.replace("NUMBER", str(number)) for number in (1, 2, 3))
    counted = count(f"  %x = f32[8,64]{{1,0}} parameter(0)\n{fusions}", pieces)
    assert counted == {("all-gather", "local"): 64 * 64 * 4}


@pytest.mark.parametrize(
    ("constant", "operation"), [("0", "all-gather"), ("1", "all-reduce"), ("-inf", "all-reduce")]
)
def test_adding_up_shards_in_zeros_is_a_gather(constant, operation):
    fused = f"""
%placed (p: f32[8,64], i: s32[]) -> f32[64,64] {{
  %p = f32[8,64]{{1,0}} parameter(0)
  %i = s32[] parameter(1)
  %n = s32[] constant(0)
  %c = f32[] constant({constant})
  %z = f32[64,64]{{1,0}} broadcast(%c), dimensions={{}}
  ROOT %u = f32[64,64]{{1,0}} dynamic-update-slice(%z, %p, %i, %n)
}}
"""
    counted = count(
        f"""
  %x = f32[8,64]{{1,0}} parameter(0)
  %i = s32[] partition-id()
  %f = f32[64,64]{{1,0}} fusion(%x, %i), kind=kLoop, calls=%placed
  %b = f32[64,64]{{1,0}} bitcast(%f)
  %s = (f32[64,64]{{1,0:S(1)}}, f32[64,64]{{1,0}}, u32[]) copy-start(%b)
  %d = f32[64,64]{{1,0:S(1)}} copy-done(%s)
  ROOT %r = f32[64,64]{{1,0}} all-reduce(%d), to_apply=%add, {scope("jvp(global)")}
""",
        fused,
    )
    assert counted == {(operation, "global"): 64 * 64 * 4}


def test_a_joined_collective_counts_for_the_parts_of_its_operands():
    counted = count(f"""
  %x = f32[8,64]{{1,0}} parameter(0)
  %l = f32[8,64]{{1,0}} negate(%x), {scope("transpose(jvp(local))")}
  %g = f32[8,64]{{1,0}} negate(%x), {scope("transpose(jvp(global))")}
  %r = (f32[8,64]{{1,0}}, f32[8,64]{{1,0}}) all-reduce(%l, %g), to_apply=%add
  ROOT %e = f32[8,64]{{1,0}} get-tuple-element(%r), index=0
""")
    assert counted == {
        ("all-reduce", "local"): 8 * 64 * 4,
        ("all-reduce", "global"): 8 * 64 * 4,
    }


def test_loops_multiply():
    loop = f"""
%body (t: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {{
  %t = (s32[], f32[8,64]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %y = f32[8,64]{{1,0}} get-tuple-element(%t), index=1
  %r = f32[8,64]{{1,0}} all-reduce(%y), to_apply=%add, {scope("jvp(while)/body/local")}
  ROOT %u = (s32[], f32[8,64]{{1,0}}) tuple(%i, %r)
}}

%more (t: (s32[], f32[8,64])) -> pred[] {{
  %t.1 = (s32[], f32[8,64]{{1,0}}) parameter(0)
  ROOT %p = pred[] constant(true)
}}
"""
    counted = count(
        """
  %x = f32[8,64]{1,0} parameter(0)
  %n = s32[] constant(0)
  %t.2 = (s32[], f32[8,64]{1,0}) tuple(%n, %x)
  %w = (s32[], f32[8,64]{1,0}) while(%t.2), condition=%more, body=%body, \
backend_config={"known_trip_count":{"n":"9"}}
  ROOT %o = f32[8,64]{1,0} get-tuple-element(%w), index=1
""",
        loop,
    )
    assert counted == {("all-reduce", "local"): 9 * 8 * 64 * 4}


def test_sums_name_every_part_and_each_operation():
    sizes = collective_bytes(hlo.parse(f"HloModule m\n{SUM}\nENTRY %main () -> f32[] {{\n}}\n"))
    sizes["all-gather", "local"], sizes["all-reduce", "local"] = 3, 4
    parts = ["embedding_and_loss", "local", "global", "state", "experts", "optimizer", "other"]
    assert by_part(sizes) == {"total": 7, **dict.fromkeys(parts, 0), "local": 7}
    assert by_operation(sizes) == {"all-gather": 3, "all-reduce": 4}


# --- Parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(step)/jvp(embedding)/gather", "embedding_and_loss"),
        ("jit(step)/transpose(jvp(loss))/while/body/dot_general", "embedding_and_loss"),
        ("jit(step)/jvp()/while/body/closed_call/local/dot_general", "local"),
        (
            "jit(step)/transpose(jvp())/while/body/checkpoint/rematted_computation/global/mul",
            "global",
        ),
        ("jit(step)/jvp()/while/body/local/experts/btd,de->bte/dot_general", "experts"),
        ("jit(step)/transpose(jvp(local))/experts/mul", "experts"),
        ("jit(step)/transpose(jvp())/while/body/state/while/body/dot_general", "state"),
        ("jit(step)/optimizer/sqrt", "optimizer"),
        ("state.params", "other"),
        ("jit(step)/locals/mul", "other"),
        ("", "other"),
    ],
)
def test_the_innermost_scope_names_the_part(name, part):
    assert hlo.part_of(name) == part


def test_what_the_compiler_added_belongs_to_what_it_is_made_from_or_serves():
    text = f"""HloModule m
%copied (p: f32[8,8]) -> f32[8,8] {{
  %p = f32[8,8]{{1,0}} parameter(0)
  ROOT %d = f32[8,8]{{1,0}} dot(%p, %p), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {{
  %x = f32[8,8]{{1,0}} parameter(0)
  %before = f32[8,8]{{0,1}} copy(%x)
  %made = f32[8,8]{{1,0}} negate(%before), {scope("jvp(local)")}
  %after = f32[8,8]{{1,0}} copy(%made)
  ROOT %f = f32[8,8]{{1,0}} fusion(%after), kind=kOutput, calls=%copied, {scope("jvp(loss)")}
}}
"""
    computations = hlo.parse(text).computations
    entry, inner = computations["main"], computations["copied"]
    assert entry["before"].part == entry["after"].part == "local"
    assert inner["d"].part == "embedding_and_loss"
    assert inner["p"].part == "local"


# --- Memory ------------------------------------------------------------------------------------

SLICED = """
%cut (p: f32[60,128], i: s32[]) -> f32[1,128] {
  %p = f32[60,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,128]{1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,128}
}

%written (p: f32[60,128], q: f32[1,128], i: s32[]) -> f32[60,128] {
  %p.1 = f32[60,128]{1,0} parameter(0)
  %q.1 = f32[1,128]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %u = f32[60,128]{1,0} dynamic-update-slice(%p.1, %q.1, %i.1)
}
"""


def test_a_slice_is_seen_through_bitcasts_and_inside_another_fusion():
    """Here as a product's fusion of one tile, which a whole stack of tiles is handed to."""
    text = f"""HloModule m
{SLICED}
%doubled (p: f32[60,128], q: f32[1,128], i: s32[]) -> f32[60,1,128] {{
  %p.3 = f32[60,128]{{1,0}} parameter(0)
  %q.3 = f32[1,128]{{1,0}} parameter(1)
  %i.3 = s32[] parameter(2)
  %tile = f32[1,128]{{1,0}} fusion(%p.3, %i.3), kind=kLoop, calls=%cut
  %more = f32[1,128]{{1,0}} add(%tile, %q.3)
  %u.3 = f32[60,128]{{1,0}} dynamic-update-slice(%p.3, %more, %i.3)
  ROOT %out = f32[60,1,128]{{2,1,0}} bitcast(%u.3)
}}

ENTRY %main (x: f32[60,128], y: f32[1,128], i: s32[]) -> f32[60,1,128] {{
  %x = f32[60,128]{{1,0}} parameter(0)
  %y = f32[1,128]{{1,0}} parameter(1)
  %i.4 = s32[] parameter(2)
  ROOT %d = f32[60,1,128]{{2,1,0}} fusion(%x, %y, %i.4), kind=kOutput, calls=%doubled
}}
"""
    row, index = 128 * 4, 4
    assert memory.traffic(hlo.parse(text)) == 3 * row + index  # a tile and y in, the sum out


def test_a_slice_of_a_stack_is_what_a_fusion_reads_and_writes():
    text = f"""HloModule m
{SLICED}
ENTRY %main (x: f32[60,128], i: s32[]) -> f32[60,128] {{
  %x = f32[60,128]{{1,0}} parameter(0)
  %i.2 = s32[] parameter(1)
  %cut.1 = f32[1,128]{{1,0}} fusion(%x, %i.2), kind=kLoop, calls=%cut
  %chip = f32[1,128]{{1,0:T(8,128)S(1)}} negate(%cut.1)
  ROOT %w = f32[60,128]{{1,0}} fusion(%x, %chip, %i.2), kind=kLoop, calls=%written
}}
"""
    program = hlo.parse(text)
    row, index = 128 * 4, 4
    # A slice in and out, negate reads it, the update comes from the chip and goes to memory.
    assert memory.traffic(program) == (2 * row + index) + row + (row + index) + row
    largest = memory.largest_buffers(program, count=3)
    named = [(each.type, each.bytes, each.part) for each in largest]
    assert sorted(named[:2]) == [
        ("f32[60,128]", 60 * row, "arguments"),
        ("f32[60,128]", 60 * row, "other"),
    ]
    assert named[2] == ("f32[1,128]", row, "other")
