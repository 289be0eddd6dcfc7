import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from regvq_jax import sharding
from regvq_jax.collectives import Traffic, count_collectives, shape_bytes

HLO = """
HloModule step, entry_computation_layout={()->f32[]}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%branch (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %permute = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}

%body (carry: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %row = bf16[2,16]{1,0} get-tuple-element(%carry), index=1
  %gathered = bf16[8,16]{1,0} all-gather(%row), replica_groups=[2,4]<=[8], dimensions={0}
  %scattered = bf16[2,16]{1,0} reduce-scatter(%gathered), dimensions={0}, to_apply=%add
}

%condition (carry: (s32[], bf16[8,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[] compare(%round, %limit), direction=LT
}

%begin (p: f32[4]) -> f32[16] {
  %p = f32[4]{0} parameter(0)
  ROOT %gathered = f32[16]{0} all-gather(%p), channel_id=5, frontend_attributes={chain_id="1"}
}

%go_on (p: f32[4]) -> f32[16] {
  %p = f32[4]{0} parameter(0)
  ROOT %gathered = f32[16]{0} all-gather(%p), channel_id=5, frontend_attributes={chain_id="1"}
}

ENTRY %main (a: f32[4], b: f32[]) -> f32[] {
  %a = f32[4]{0} parameter(0)
  %b = f32[] parameter(1)
  %both = (f32[4]{0}, /*index=1*/f32[]) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%a), dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %loop = (s32[], bf16[8,16]{1,0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %second = (s32[], bf16[8,16]{1,0}) while(%loop), condition=%condition, body=%body
  %begun = f32[16] fusion(%a), kind=kCustom, calls=%begin
  %gone_on = f32[16] fusion(%a), kind=kCustom, calls=%go_on
  %chosen = f32[4]{0} conditional(%i, %a, %a), branch_computations={%branch, %branch}
}
"""


def test_bytes_of_shapes():
    assert shape_bytes("(f32[8,16]{1,0}, s32[], /*index=2*/pred[3])") == 8 * 16 * 4 + 4 + 3
    assert shape_bytes("bf16[5]{0:T(8,128)(2,1)}") == 10
    assert shape_bytes("f8e4m3fn[7]") == 7 and shape_bytes("s4[3]") == 2 and shape_bytes("token[]") == 0


def test_a_program_counted_by_hand():
    # Three rounds that are known, and seven up to the limit.
    gathered, rounds = 8 * 16 * 2, 3 + 7
    assert count_collectives(HLO) == {
        "all-reduce": Traffic(1, 4 * 4 + 4),
        "all-gather": Traffic(1 + rounds + 1, 32 * 4 + rounds * gathered + 16 * 4),
        "reduce-scatter": Traffic(rounds, rounds * gathered),
        "collective-permute": Traffic(2, 2 * 4 * 4),
    }


def test_a_compiled_loop_of_gathers():
    mesh = sharding.make_mesh(1, 8)
    rows = NamedSharding(mesh, P("fsdp"))

    def scan(layers, x):
        def layer(x, kernel):
            kernel = jax.lax.with_sharding_constraint(kernel, sharding.replicated(mesh))
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(layer, x, layers)[0].sum()

    x = jax.ShapeDtypeStruct((8, 64), jnp.float32)
    layers = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
    places = NamedSharding(mesh, P(None, "fsdp")), rows
    hlo = jax.jit(scan, in_shardings=places).lower(layers, x).compile().as_text()
    found = count_collectives(hlo)
    # Whether each layer's kernel is gathered in its round, or all before: the bytes are the same.
    assert found["all-gather"].bytes == 5 * 64 * 64 * 4
    assert found["all-gather"].count in (1, 5) and found["all-reduce"] == Traffic(1, 4)
