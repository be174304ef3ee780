"""The mesh, the table of logical axes, and the refusals: nothing is replicated silently."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from jaxrlhf import sharding
from jaxrlhf.algorithms.base import State, new_state
from jaxrlhf.errors import UserError


def specs(mesh, tree) -> dict[str, P]:
    leaves = jax.tree_util.tree_leaves_with_path(sharding.tree_sharding(mesh, tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): s.spec for path, s in leaves}


def test_matrices_are_split_over_the_tensor_axis():
    found = specs(sharding.make_mesh(2, 2), tiny.LM.init(jax.random.key(0)))
    assert found["embed/embedding"] == P("tensor", None)
    assert found["blocks/q_proj/kernel"] == P(None, None, "tensor")  # layers, embed, heads
    assert found["blocks/o_proj/kernel"] == P(None, "tensor", None)
    assert found["blocks/down_proj/kernel"] == P(None, "tensor", None)
    assert found["lm_head/kernel"] == P(None, "tensor")
    assert found["final_norm/scale"] == P(None)


def test_optimiser_moments_lie_where_their_parameters_lie():
    state = new_state(tiny.LM.init(jax.random.key(0)), optax.adam(1e-3))
    found = specs(sharding.make_mesh(1, 2), state)
    kernel = {spec for name, spec in found.items() if name.endswith("blocks/up_proj/kernel")}
    assert len(kernel) == 1 and kernel == {P(None, None, "tensor")}
    assert sum(name.endswith("blocks/up_proj/kernel") for name in found) == 3  # params, mu, nu


def test_scalars_are_replicated():
    state = State(jnp.int32(0), {}, {}, {"kl_coef": jnp.float32(0.1)})
    assert set(specs(sharding.make_mesh(2, 2), state).values()) == {P()}


def test_an_unknown_leaf_is_an_error_that_names_it():
    with pytest.raises(UserError, match=r"blocks/adapter/kernel .*PARAM_AXES"):
        sharding.tree_sharding(
            sharding.make_mesh(1, 1), {"blocks": {"adapter": {"kernel": jnp.zeros((2, 2, 2))}}}
        )


def test_a_dimension_that_does_not_divide_is_an_error_that_names_it():
    tree = {"embed": {"embedding": jnp.zeros((7, 4))}}
    with pytest.raises(UserError, match=r"embed/embedding: axis 'vocab' of size 7 .* 2 devices"):
        sharding.tree_sharding(sharding.make_mesh(1, 2), tree)


def test_a_batch_that_does_not_divide_names_the_nearest_size():
    with pytest.raises(UserError, match=r"batch of 5 rows .* is 8"):
        sharding.shard_batch(sharding.make_mesh(4, 1), {"tokens": np.zeros((5, 3))})


def test_rows_are_spread_over_the_data_axis_alone():
    batch = sharding.shard_batch(sharding.make_mesh(4, 2), {"tokens": np.arange(8.0).reshape(8, 1)})
    shards = {tuple(shard.data.ravel().tolist()) for shard in batch["tokens"].addressable_shards}
    assert shards == {(0.0, 1.0), (2.0, 3.0), (4.0, 5.0), (6.0, 7.0)}


def test_a_mesh_larger_than_the_machine_is_an_error():
    with pytest.raises(UserError, match=r"needs 32 devices, there are 8"):
        sharding.make_mesh(16, 2)


def test_minus_one_takes_all_devices():
    assert dict(sharding.make_mesh(-1, 2).shape) == {"data": 4, "tensor": 2}
