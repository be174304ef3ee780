"""Memory from shapes: exact parts against arrays, estimates against what XLA reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import sharding
from jaxrlhf.algorithms.sft import sft
from jaxrlhf.errors import UserError
from jaxrlhf.models import Lora, lora, make_lm, make_scalar_model, transformer_config
from jaxrlhf.optim import make_optimizer
from jaxrlhf.recipes import memory
from jaxrlhf.recipes.memory import Setting

SIZES = dict(vocab_size=512, num_layers=2, num_heads=4, d_model=128, d_ff=512, max_positions=128)


def config_of(family="llama", **changes):
    return transformer_config(family, **{**SIZES, **changes})


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def state_of(config, micro_batches=1):
    algorithm = sft(
        make_lm(config),
        make_optimizer(learning_rate=1e-3, total_steps=9),
        micro_batches=micro_batches,
    )
    params = jax.eval_shape(make_lm(config).init, jax.random.key(0))
    return algorithm, jax.eval_shape(algorithm.init, params, jax.random.key(0))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_a_run_keeps_is_exact(family):
    config = config_of(family)
    _, state = state_of(config)
    parts = memory.sft(config, Setting())
    assert parts["parameters"] == parts["gradients"] == bytes_of(state.params)
    counters = 8  # two step counts of the optimiser
    assert parts["Adam's moments"] == bytes_of(state.opt_state) - counters
    optimizer = make_optimizer(learning_rate=1e-3, total_steps=9, adam_mu_dtype="bfloat16")
    smaller = bytes_of(jax.eval_shape(optimizer.init, state.params)) - counters
    assert memory.sft(config, Setting(mu_bytes=2))["Adam's moments"] == smaller
    assert smaller == 0.75 * parts["Adam's moments"]


def test_what_an_adapter_run_keeps_is_exact():
    """Policy and value network: their adapters and the head, beside two bases in bfloat16."""
    config, spec = config_of(), Lora(rank=3)
    key, lm, scalar = jax.random.key(0), make_lm(config), make_scalar_model(config)
    base, value = (jax.eval_shape(model.init, key) for model in (lm, scalar))
    adapters = jax.eval_shape(lambda: lora.init(spec, key, base))
    params = {"policy": adapters, "value": {"lm": adapters, "head": value["head"]}}
    optimizer = make_optimizer(learning_rate=1e-3, total_steps=9)
    setting = Setting(rows=2, columns=10, lora=spec, dtype_bytes=2)
    parts = memory.ppo(config, setting, new_tokens=6)
    assert parts["parameters"] == parts["gradients"] == bytes_of(params)
    assert parts["Adam's moments"] == bytes_of(jax.eval_shape(optimizer.init, params)) - 8
    assert parts["base: policy"] == bytes_of(base) / 2 and "reference policy" not in parts
    assert parts["base: reward model"] == bytes_of(value) / 2 and "reward model" not in parts
    whole = memory.ppo(config, Setting(frozen_bytes=2), new_tokens=6)
    assert whole["reference policy"] == bytes_of(base) / 2  # `base` is float32 here
    assert whole["reward model"] == bytes_of(value) / 2
    alone = memory.ppo(config, setting, new_tokens=6, reward_model=False)
    assert alone["base: reward model"] == 0  # the value network's base is the policy's
    tuned = memory.sft(config, setting)
    assert tuned["parameters"] == bytes_of(adapters) and tuned["base"] == bytes_of(base) / 2


def test_weights_are_split_over_the_tensor_axis_as_they_will_be():
    config = config_of(num_kv_heads=2)
    params = make_lm(config).init(jax.random.key(0))
    mesh = sharding.make_mesh(2, 2)
    placed = jax.device_put(params, sharding.tree_sharding(mesh, params))
    here = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(placed))
    assert memory.lm_elements(config, tensor=2) == here
    with pytest.raises(UserError, match="does not divide over 3 devices"):
        memory.lm_elements(config, tensor=3)


def test_the_cache_is_exact():
    config = config_of(num_kv_heads=2)
    lm = make_lm(config)
    tokens = jnp.zeros((3, 4), jnp.int32)

    def cache(params):
        return lm.prefill(lm.decode_params(params), tokens, tokens == 0, cache_length=10)[1]

    found = jax.eval_shape(cache, jax.eval_shape(lm.init, jax.random.key(0)))
    parts = memory.ppo(config, Setting(rows=3, columns=10), new_tokens=6)
    assert parts["sampling: KV cache"] == bytes_of((found.keys, found.values))


@pytest.mark.parametrize(
    ("changes", "micro_batches"),
    [
        ({}, 1),
        ({}, 2),
        ({"remat": True}, 1),
        ({"num_layers": 4}, 1),
        ({"vocab_size": 8192}, 1),
        ({"family": "gpt2"}, 1),
    ],
)
def test_estimates_are_of_the_size_that_xla_reports(changes, micro_batches):
    """Within a factor of 1.6, either way. (How code is optimised makes no difference to it.)"""
    config = config_of(**changes)
    algorithm, state = state_of(config, micro_batches)
    rows, columns = 8, 128
    kinds = {"tokens": jnp.int32, "mask": bool, "loss_mask": bool, "segment_ids": jnp.int32}
    batch = {name: jax.ShapeDtypeStruct((rows, columns), kind) for name, kind in kinds.items()}
    update = jax.jit(algorithm.update, donate_argnums=0)
    compiled = update.lower(state, batch, jax.random.key(0)).compile()
    parts = memory.sft(
        config,
        Setting(
            rows=rows,
            columns=columns,
            pieces=micro_batches,
            accumulated=micro_batches > 1,
            remat=config.remat,
        ),
    )
    estimate = memory.peak(parts) - parts["parameters"] - parts["Adam's moments"]
    assert 1 / 1.6 < estimate / compiled.memory_analysis().temp_size_in_bytes < 1.6


def test_directions():
    config = config_of()
    base = memory.peak(memory.ppo(config, Setting(rows=32), new_tokens=16))

    def peak(new_tokens=16, shared_value=False, reward_model=True, **changes):
        setting = Setting(rows=32)._replace(**changes)
        parts = memory.ppo(
            config,
            setting,
            new_tokens=new_tokens,
            shared_value=shared_value,
            reward_model=reward_model,
        )
        return memory.peak(parts)

    assert peak(rows=64) > base and peak(columns=256) > base and peak(accumulated=True) > base
    assert peak(new_tokens=32) > base
    for smaller in ({"data": 2}, {"tensor": 2}, {"pieces": 4}, {"remat": True}, {"chunk_size": 64}):
        assert peak(**smaller) < base, smaller
    assert peak(shared_value=True) < base and peak(reward_model=False) < base
    reward = memory.reward(config, Setting(rows=32))
    assert reward["activations"] == pytest.approx(
        2 * memory.sft(config, Setting(rows=32))["activations"]
    )
    assert np.isfinite(list(reward.values())).all()
