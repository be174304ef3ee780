"""Where arrays live: nothing unknown, nothing indivisible, nothing silently replicated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, PartitionSpec

from jaxrlhf import sharding
from jaxrlhf.algorithms.base import new_state
from jaxrlhf.errors import UserError
from jaxrlhf.models import make_lm, transformer_config

SIZES = {"vocab_size": 8, "num_layers": 2, "d_model": 16, "d_ff": 32, "max_positions": 16}


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def specs(tree) -> dict[str, PartitionSpec]:
    return {jax.tree_util.keystr(k): s.spec for k, s in jax.tree_util.tree_leaves_with_path(tree)}


def test_meshes():
    mesh = sharding.make_mesh(2, 4)
    assert dict(mesh.shape) == {"data": 2, "tensor": 4}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert dict(sharding.make_mesh().shape) == {"data": 8, "tensor": 1}
    assert dict(sharding.make_mesh(-1, 2).shape) == {"data": 4, "tensor": 2}
    assert sharding.make_mesh(1, 1).devices.size == 1
    with pytest.raises(UserError, match=r"mesh \(4, 4\) needs 16 devices, there are 8"):
        sharding.make_mesh(4, 4)
    with pytest.raises(UserError, match=r"mesh \(1, 16\) needs 16 devices"):
        sharding.make_mesh(-1, 16)


def test_parameters_are_split_as_the_table_says():
    mesh = sharding.make_mesh(2, 2)
    params = jax.eval_shape(tiny.LM.init, jax.random.key(0))
    found = specs(sharding.tree_sharding(mesh, params))
    assert found["['embed']['embedding']"] == PartitionSpec("tensor", None)
    assert found["['lm_head']['kernel']"] == PartitionSpec(None, "tensor")
    # Blocks are stacked: their first axis is the layer.
    assert found["['blocks']['q_proj']['kernel']"] == PartitionSpec(None, None, "tensor")
    assert found["['blocks']['o_proj']['kernel']"] == PartitionSpec(None, "tensor", None)
    assert found["['blocks']['down_proj']['kernel']"] == PartitionSpec(None, "tensor", None)
    assert found["['blocks']['attn_norm']['scale']"] == PartitionSpec(None, None)
    assert found["['final_norm']['scale']"] == PartitionSpec(None)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_leaf_of_every_family_has_a_place(family):
    lm = make_lm(transformer_config(family, num_heads=2, **SIZES))
    params = jax.eval_shape(lm.init, jax.random.key(0))
    split = specs(sharding.tree_sharding(sharding.make_mesh(2, 2), params))
    assert sum("tensor" in spec for spec in split.values()) >= len(split) / 2


def test_moments_are_laid_out_as_their_parameters():
    """Also inside a chain, and the count and the other scalars on every device."""

    def state(key):
        params = {"policy": tiny.LM.init(key), "value": tiny.SCALAR.init(key)}
        return new_state(params, tiny.adam(), {"kl_coef": jnp.ones(())})

    abstract = jax.eval_shape(state, jax.random.key(0))
    layout = sharding.tree_sharding(sharding.make_mesh(2, 2), abstract)
    by_path = {jax.tree_util.keystr(k): s for k, s in jax.tree_util.tree_leaves_with_path(layout)}
    parameters = {
        k.removeprefix(".params"): s for k, s in by_path.items() if k.startswith(".params")
    }
    moments = 0
    for path, place in parameters.items():
        for moment in (".mu", ".nu"):
            (found,) = [s for k, s in by_path.items() if k.endswith(moment + path)]
            assert found == place, path
            moments += 1
    assert moments == 2 * len(jax.tree.leaves(abstract.params))
    assert by_path[".step"].spec == by_path[".extra['kl_coef']"].spec == PartitionSpec()


def test_an_unknown_leaf_is_refused():
    mesh = sharding.make_mesh(2, 2)
    with pytest.raises(
        UserError, match=r"blocks/lora_a/kernel \(rank 3\) has no entry in PARAM_AX"
    ):
        sharding.tree_sharding(mesh, {"blocks": {"lora_a": {"kernel": shape(2, 16, 4)}}})
    with pytest.raises(UserError, match=r"extra/history \(rank 1\)"):
        sharding.tree_sharding(mesh, {"extra": {"history": shape(4)}})
    # A known name with another rank is no known leaf, nor is one that merely ends alike.
    with pytest.raises(UserError, match=r"embed/embedding \(rank 3\)"):
        sharding.tree_sharding(mesh, {"embed": {"embedding": shape(8, 16, 2)}})
    with pytest.raises(UserError, match="my_head/kernel"):
        sharding.tree_sharding(mesh, {"my_head": {"kernel": shape(16)}})


def test_an_indivisible_dimension_is_refused():
    tree = {"blocks": {"up_proj": {"kernel": shape(2, 16, 30)}}}
    sharding.tree_sharding(sharding.make_mesh(2, 2), tree)
    with pytest.raises(UserError) as error:
        sharding.tree_sharding(sharding.make_mesh(2, 4), tree)
    assert "blocks/up_proj/kernel: axis 'mlp' of size 30" in str(error.value)
    assert "4 devices of mesh axis 'tensor'" in str(error.value)


def test_rows_are_spread_over_the_data_axis():
    mesh = sharding.make_mesh(4, 2)
    batch = {"tokens": np.arange(24).reshape(8, 3), "row": np.arange(8)}
    found = sharding.shard_batch(mesh, batch)
    for name, x in found.items():
        np.testing.assert_array_equal(x, batch[name])
        assert x.sharding.spec == PartitionSpec("data")
        assert {s.data.shape[0] for s in x.addressable_shards} == {2}


@pytest.mark.parametrize(("rows", "nearest"), [(9, 8), (11, 12), (10, 12), (1, 4), (5, 4)])
def test_a_batch_that_does_not_divide_names_the_nearest_size(rows, nearest):
    """Four devices; a tie goes up, and a batch has at least a row a device."""
    mesh = sharding.make_mesh(4, 2)
    with pytest.raises(UserError, match=rf"batch of {rows} rows \(tokens\) .* 4 devices") as error:
        sharding.shard_batch(mesh, {"tokens": np.zeros((rows, 3))})
    assert str(error.value).endswith(f"the nearest batch size that does is {nearest}")


def test_replicated_is_everywhere():
    mesh = sharding.make_mesh(2, 2)
    x = jax.device_put(jnp.arange(3), sharding.replicated(mesh))
    assert len(x.sharding.device_set) == 4 and x.sharding.is_fully_replicated
