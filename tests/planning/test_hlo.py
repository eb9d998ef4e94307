"""Compiled programs as text: who calls whom, how often loops go round, and what is sent."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_jax.planning.collectives import Collective, array_bytes, collectives
from dlm_jax.planning.hlo import Module
from dlm_jax.planning.links import Links

# A loop of 12 rounds (a scan), in which a product goes round a ring in a loop that is unrolled
# twice: a counter to 8 in steps of 2. As the TPU compiler writes it, attributes cut.
NESTED = (
    """HloModule jit_step, is_scheduled=true

%ring_condition (p.1: (bf16[2,4], u32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(8), metadata={op_name="a(b)"}
  %p.1 = (bf16[2,4]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %gte.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %compare.1 = pred[]{:T(512)} compare(%gte.1, %constant.1), direction=LT
}

%ring_body (p.2: (bf16[2,4], u32[])) -> (bf16[2,4], u32[]) {
  %p.2 = (bf16[2,4]{1,0}, u32[]{:T(128)}) parameter(0)
  %gte.2 = bf16[2,4]{1,0} get-tuple-element(%p.2), index=0
  %permute-start = (bf16[2,4]{1,0}, bf16[2,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) """
    + ("collective-permute-start(%gte.2), channel_id=6, source_target_pairs={{0,1},{1,0}}")
    + """
  %permute-done = bf16[2,4]{1,0} collective-permute-done(%permute-start)
  %gte.3 = u32[]{:T(128)} get-tuple-element(%p.2), index=1
  %constant.2 = u32[]{:T(128)} constant(2)
  %add.1 = u32[]{:T(128)} add(%gte.3, %constant.2)
  ROOT %tuple.1 = (bf16[2,4]{1,0}, u32[]{:T(128)}) tuple(%permute-done, %add.1)
}

%scan_condition (p.3: (bf16[2,4], s32[])) -> pred[] {
  %p.3 = (bf16[2,4]{1,0}, s32[]) parameter(0)
  %gte.4 = s32[] get-tuple-element(%p.3), index=1
  %constant.3 = s32[] constant(12)
  ROOT %compare.2 = pred[] compare(%gte.4, %constant.3), direction=LT
}

%scan_body (p.4: (bf16[2,4], s32[])) -> (bf16[2,4], s32[]) {
  %p.4 = (bf16[2,4]{1,0}, s32[]) parameter(0)
  %while.1 = (bf16[2,4]{1,0}, u32[]) while(%p.4), condition=%ring_condition, body=%ring_body
  %gte.5 = bf16[2,4]{1,0} get-tuple-element(%while.1), index=0
  %gte.6 = s32[] get-tuple-element(%p.4), index=1
  %constant.4 = s32[] constant(1)
  %add.2 = s32[] add(%gte.6, %constant.4)
  ROOT %tuple.2 = (bf16[2,4]{1,0}, s32[]) tuple(%gte.5, %add.2)
}

ENTRY %main (a: bf16[2,4]) -> bf16[2,4] {
  %a = bf16[2,4]{1,0} parameter(0)
  %tuple.3 = (bf16[2,4]{1,0}, s32[]) tuple(%a)
  %while.2 = (bf16[2,4]{1,0}, s32[]) while(%tuple.3), condition=%scan_condition, body=%scan_body
  ROOT %gte.7 = bf16[2,4]{1,0} get-tuple-element(%while.2), index=0
}
"""
)


def entry(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\n{before}ENTRY %main (a: f32[4]) -> f32[4] {{\n{body}\n}}\n"


def only(text: str, devices: int = 8, domains=None) -> Collective:
    (found,) = collectives(text, Links(tuple(domains or [0] * devices)))
    return found


def test_nested_loops_multiply_and_steps_divide() -> None:
    found = only(NESTED, 2)
    assert (found.kind, found.count) == ("collective-permute", 12 * 4)
    assert found.local_bytes == 12 * 4 * 2 * 4 * 2


def test_a_loop_whose_rounds_depend_on_data_counts_as_told() -> None:
    text = NESTED.replace("compare(%gte.4, %constant.3)", "compare(%gte.4, %gte.4)").replace(
        "%constant.3 = s32[] constant(12)", "%other = s32[] get-tuple-element(%p.3), index=1"
    )
    module = Module.parse(text)
    loops = [i for body in module.computations.values() for i in body if i.opcode == "while"]
    assert [module.trip_count(loop) for loop in loops] == [4, None]
    (found,) = collectives(text, Links((0, 0)), unknown_trips=3)
    assert found.count == 3 * 4


def test_the_compilers_own_count_wins() -> None:
    known = 'body=%scan_body, backend_config={"known_trip_count":{"n":"7"}}'
    assert only(NESTED.replace("body=%scan_body", known), 2).count == 7 * 4


@pytest.mark.parametrize(
    ("line", "kind", "group", "sent"),
    [
        # 8 devices, 4096 bytes of float32: what a ring of n sends is b (n-1)/n, twice for a sum.
        (
            "%x = f32[1024]{0} all-gather(%a), replica_groups=[1,8]<=[8], dimensions={0}",
            "all-gather", 8, 4096 * 7 / 8,
        ),
        (
            "%x = f32[1024]{0} all-reduce(%a), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%s",
            "all-reduce", 4, 2 * 4096 * 3 / 4,
        ),
        (
            "%x = f32[128]{0} reduce-scatter(%a), replica_groups=[1,8]<=[8], to_apply=%s",
            "reduce-scatter", 8, 4096 * 7 / 8,
        ),
        (
            "%x = f32[1024]{0} all-to-all(%a), replica_groups=[4,2]<=[2,4]T(1,0)",
            "all-to-all", 2, 4096 / 2,
        ),
        (
            "%x = f32[1024]{0} all-gather(%a), replica_groups=mesh['x'=2,'y'=4] {'y'}",
            "all-gather", 4, 4096 * 3 / 4,
        ),
        (
            "%x = f32[1024]{0} all-gather(%a), replica_groups=mesh['x'=8] {'x':(1)2}, channel_id=1",
            "all-gather", 2, 4096 / 2,
        ),
        (
            # Of a mesh whose devices are listed in another order.
            "%x = f32[1024]{0} all-gather(%a), replica_groups=mesh['x'=2,'y'=1,'z'=4], "
            "device_ids=([4,2]T(1,0)) {'z'}, dimensions={0}",
            "all-gather", 4, 4096 * 3 / 4,
        ),
        (
            "%x = f32[1024]{0} all-gather(%a), replica_groups=mesh['x'=2,'y'=4], "
            "device_ids=(0,2,4,6,1,3,5,7) {'x'}, dimensions={0}",
            "all-gather", 2, 4096 / 2,
        ),
        (
            "%x = (f32[512]{0}, f32[512]{0}) all-reduce(%a, %b), replica_groups={}, to_apply=%s",
            "all-reduce", 8, 2 * 4096 * 7 / 8,
        ),
        (
            "%x = (f32[128]{0:T(128)}, f32[1024]{0:T(128)}) all-gather-start(%a), "
            "replica_groups=[1,8]<=[8]",
            "all-gather", 8, 4096 * 7 / 8,
        ),
        (
            "%x = f32[1024]{0} collective-permute(%a), source_target_pairs={{0,1},{1,2}}",
            "collective-permute", 2, 4096,
        ),
    ],
)  # fmt: skip
def test_rings(line, kind, group, sent) -> None:
    found = only(entry(line))
    assert (found.kind, found.group, found.local_bytes) == (kind, group, sent)
    assert found.network_bytes == 0


def test_groups_across_slices_ring_inside_and_send_their_part_across() -> None:
    line = "%x = f32[1024]{0} all-reduce(%a), replica_groups=[1,8]<=[8], to_apply=%s"
    found = only(entry(line), domains=[0] * 4 + [1] * 4)
    assert found.local_bytes == 2 * 4096 * 3 / 4
    assert found.network_bytes == 2 * 4096 / 4 * 1 / 2
    # Groups that stay inside a slice send nothing across.
    inside = "%x = f32[1024]{0} all-reduce(%a), replica_groups=[2,4]<=[8], to_apply=%s"
    assert only(entry(inside), domains=[0] * 4 + [1] * 4).network_bytes == 0


# Four chips in two rows of two, and a whole cube whose rows are rings.
_SQUARE = Links((0,) * 4, ((0, 0), (1, 0), (0, 1), (1, 1)), (2, 2), (False, False))
_CUBE = Links(
    (0,) * 64,
    tuple((x, y, z) for x in range(4) for y in range(4) for z in range(4)),
    (4, 4, 4),
    (True, True, True),
)


@pytest.mark.parametrize(
    ("links", "group", "directions"),
    [
        (_SQUARE, [0, 1], 1),
        (_SQUARE, [0, 1, 2, 3], 2),
        (_CUBE, range(64), 6),
        (_CUBE, range(16), 4),  # a plane
        (_CUBE, range(4), 2),  # a ring
        (_CUBE, range(2), 1),  # half a ring, whose ends are not joined
        (_CUBE, [0], 1),
        (Links((0,) * 8), range(8), 1),
    ],
)
def test_rings_use_the_links_of_the_axes_that_their_group_spans(links, group, directions) -> None:
    assert links.directions(np.array(group)) == directions


def test_groups_lie_where_the_order_of_the_mesh_puts_them() -> None:
    text = (
        "%x = f32[1024]{{0}} all-gather(%a), replica_groups=mesh['x'=16,'y'=4], "
        "device_ids=([4,16]T(1,0)) {{'{}'}}, dimensions={{0}}"
    )
    # Devices 0 to 15 lie along 'x', 0, 16, 32 and 48 along 'y'.
    (plane,) = collectives(entry(text.format("x")), _CUBE)
    (ring,) = collectives(entry(text.format("y")), _CUBE)
    assert (plane.group, plane.directions) == (16, 4)
    assert (ring.group, ring.directions) == (4, 2)


def test_permutations_use_two_ways_where_another_one_goes_back() -> None:
    onwards = "%x = f32[8]{0} collective-permute(%a), source_target_pairs={{0,1},{1,2},{2,0}}"
    back = "%y = f32[8]{0} collective-permute(%a), source_target_pairs={{1,0},{2,1},{0,2}}"
    assert [item.directions for item in collectives(entry(onwards), _CUBE)] == [1]
    (both,) = collectives(entry(onwards, back), _CUBE)
    assert (both.count, both.directions) == (2, 2)
    # Two devices that swap have one link, and each sends over one of its directions.
    swap = "%x = f32[8]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}"
    assert [item.directions for item in collectives(entry(swap), _CUBE)] == [1]


def test_transfers_between_hosts_count_as_network() -> None:
    line = "%x = (bf16[16]{0}, u32[], token[]) send(%a, %t), channel_id=1, is_host_transfer=true"
    assert only(entry(line)).network_bytes == 32
    inside = entry(line.replace(", is_host_transfer=true", ""))
    assert collectives(inside, Links((0,) * 8)) == []


def test_a_permutation_without_pairs_sends_nothing() -> None:
    line = "%x = f32[2]{0} collective-permute(%a), channel_id=66, source_target_pairs={}"
    assert collectives(entry(line), Links((0,) * 8)) == []


def test_pieces_of_an_asynchronous_fusion_are_one_transfer() -> None:
    piece = (
        "%x.{0} = f32[1024]{{0}} all-gather(%a), channel_id=5, replica_groups=[1,8]<=[8], "
        'backend_config={{"async_collective_fusion_config":{{"flag_start":"{0}"}}}}'
    )
    found = only(entry(*(piece.format(number) for number in range(3))))
    assert (found.count, found.bytes) == (1, 4096)


def test_a_fused_sum_and_slice_is_a_reduce_scatter() -> None:
    before = (
        "%all-reduce-scatter.1 (p: f32[1024]) -> f32[128] {\n"
        "  %p = f32[1024]{0} parameter(0)\n"
        "  %r = f32[1024]{0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%s\n}\n\n"
    )
    line = "%x = f32[128]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1"
    found = only(entry(line, before=before))
    assert (found.kind, found.local_bytes) == ("reduce-scatter", 4096 * 7 / 8)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("bf16[16,512]{1,0:T(8,128)(2,1)}", 16384),
        ("(f32[8]{0}, pred[3], s8[2,2])", 32 + 3 + 4),
        ("f32[]", 4),
        ("f8e4m3fn[10]", 10),
        ("token[]", 0),
    ],
)
def test_bytes_of_shapes(text, size) -> None:
    assert array_bytes(text) == size


def test_text_without_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        Module.parse("nothing of the kind")


PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from dlm_jax.planning.collectives import collectives
from dlm_jax.planning.links import Links

mesh = jax.make_mesh((8,), ("x",), (jax.sharding.AxisType.Auto,))

def layer(carry, weight):
    whole = jax.lax.all_gather(weight, "x", tiled=True)
    return jnp.tanh(jax.lax.psum(carry @ whole, "x")), None

def program(unroll):
    def run(x, weights):
        return jax.lax.scan(layer, x, weights, unroll=unroll)[0]
    mapped = jax.shard_map(run, mesh=mesh, in_specs=(P(), P(None, "x")), out_specs=P(),
                           check_vma=False)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 64), (5, 64, 64))]
    return jax.jit(mapped).lower(*shapes).compile().as_text()

places = Links((0,) * 8)
report = [[(c.kind, c.count, c.bytes, c.local_bytes) for c in collectives(program(n), places)]
          for n in (1, 5)]
print(json.dumps(report + [program(1).count(" while("), program(5).count(" while(")]))
"""


def test_a_loop_sends_what_its_unrolled_program_sends(on_eight_devices) -> None:
    looped, unrolled, loops, none = on_eight_devices(PROGRAM, optimized=True)
    assert (loops, none) == (1, 0)
    assert looped == unrolled
    assert dict((kind, (count, size)) for kind, count, size, _ in looped) == {
        "all-gather": (5, 5 * 64 * 64 * 4),
        "all-reduce": (5, 5 * 4 * 64 * 4),
    }
