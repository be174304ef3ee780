"""Adapters: start as the base, merge exactly, train alone, and are laid out like their kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf import sharding
from jaxrlhf.inference import generate, score
from jaxrlhf.models import PARAM_AXES, Lora, lora, make_lm, transformer_config
from jaxrlhf.sampling import Sampling

SPEC = Lora(rank=3, alpha=6.0)


def adapted(base, spec=SPEC, seed=0):
    """Frozen parameters and adapters whose B is not zero, as after training."""
    adapters = lora.init(spec, jax.random.key(seed), base)
    rng = np.random.default_rng(seed)
    adapters = jax.tree.map(
        lambda leaf: jnp.array(rng.normal(0, 0.3, leaf.shape), jnp.float32), adapters
    )
    return lora.frozen(spec, base), adapters


@pytest.mark.parametrize(
    ("spec", "scale"),
    [
        (Lora(rank=4, alpha=8.0), 2.0),  # 8 / 4
        (Lora(rank=4, alpha=8.0, use_rslora=True), 4.0),  # 8 / sqrt(4)
    ],
)
def test_the_change_of_a_weight_is_s_a_b(spec, scale):
    """One layer, in = 2, out = 1, A = all 1, B = all 0.5: every entry of A·B is 4 * 0.5 = 2."""
    base = {"blocks": {"q_proj": {"kernel": jnp.array([[[1.0], [2.0]]])}}}
    adapters = {
        "blocks": {"q_proj": {"lora_a": jnp.ones((1, 2, 4)), "lora_b": jnp.full((1, 4, 1), 0.5)}}
    }
    merged = lora.merge(lora.attach(lora.frozen(spec, base), adapters))
    expected = np.array([[[1.0], [2.0]]]) + scale * 2.0
    np.testing.assert_array_equal(merged["blocks"]["q_proj"]["kernel"], expected)
    assert list(merged["blocks"]["q_proj"]) == ["kernel"]


def test_a_fresh_adapter_changes_no_bit(model, tokens, full):
    lm, base = model
    params = lora.attach(lora.frozen(SPEC, base), lora.init(SPEC, jax.random.key(0), base))
    np.testing.assert_array_equal(lm.hidden(params, tokens, full), lm.hidden(base, tokens, full))
    merged = lora.merge(params)
    jax.tree.map(np.testing.assert_array_equal, merged, base)


def test_merged_and_unmerged_are_the_same_model(model, tokens, full):
    """To 1e-5 relative of float32: the two add the same products in another order."""
    lm, base = model
    params = lora.attach(*adapted(base))
    merged = lora.merge(params)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    expected = lm.logits(merged, lm.hidden(merged, tokens, full))
    found = lm.logits(params, lm.hidden(params, tokens, full))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    before = lm.logits(base, lm.hidden(base, tokens, full))
    assert np.abs(found - before).max() > 0.1


def test_sampling_reads_merged_weights(models, tokens, full):
    """The sampler's log-probs (merged, cached) are those of the training forward (unmerged)."""
    lm, base = models["llama_gqa"]
    params = lora.attach(*adapted(base))
    weights = lm.decode_params(params)
    names = {
        part.key
        for path, _ in jax.tree_util.tree_leaves_with_path(weights["blocks"][0])
        for part in path
    }
    assert not names & {"lora_a", "lora_b", "lora_scale"}
    sampling = Sampling(max_new_tokens=5)
    out = generate(lm, params, tokens, full, jax.random.split(jax.random.key(0), 3), sampling)
    again = score(lm, params, out.tokens, out.mask, response_length=5)
    np.testing.assert_allclose(out.log_probs, again.log_probs, atol=1e-4)


def test_a_bfloat16_base_keeps_the_adapters_precision(models):
    """bfloat16 has 8 bits: 1 + 1e-3 is 1 there. The merged weight must not lose the change."""
    base = {"blocks": {"q_proj": {"kernel": jnp.ones((1, 2, 2), jnp.bfloat16)}}}
    spec = Lora(rank=1, alpha=1.0)
    adapters = {
        "blocks": {"q_proj": {"lora_a": jnp.full((1, 2, 1), 1e-3), "lora_b": jnp.ones((1, 1, 2))}}
    }
    merged = lora.merge(lora.attach(lora.frozen(spec, base), adapters))
    np.testing.assert_allclose(merged["blocks"]["q_proj"]["kernel"], 1.001, rtol=1e-6)


def test_gradients_reach_the_adapters_alone(models, tokens, full):
    """B moves first (A's gradient is s·xᵀ·g·Bᵀ = 0 while B is 0); then both."""
    lm, base = models["gpt2"]
    fixed = lora.frozen(SPEC, base)

    def loss(adapters):
        return jnp.mean(jnp.square(lm.hidden(lora.attach(fixed, adapters), tokens, full)[..., 0]))

    for leaves, zero in (
        (lora.init(SPEC, jax.random.key(0), base), True),
        (adapted(base)[1], False),
    ):
        grads = jax.grad(loss)(leaves)
        assert jax.tree.structure(grads) == jax.tree.structure(leaves)
        for name, pair in grads["blocks"].items():
            assert np.abs(pair["lora_b"]).max() > 0, name
            assert (np.abs(pair["lora_a"]).max() == 0) == zero, name


def test_no_weight_is_made_in_training(models, tokens, full):
    """No product of the program has a kernel's shape: only x·W, x·A and (x·A)·B are made."""
    lm, base = models["llama"]
    fixed, adapters = adapted(base)
    program = jax.make_jaxpr(
        jax.grad(lambda a: jnp.sum(lm.hidden(lora.attach(fixed, a), tokens, full)))
    )
    shapes = {leaf.shape[1:] for leaf in jax.tree.leaves(base["blocks"]) if leaf.ndim == 3}
    made = [
        eqn.outvars[0].aval.shape
        for eqn in equations(program(adapters).jaxpr)
        if eqn.primitive.name == "dot_general"
    ]
    assert len(made) > 20 and not [shape for shape in made if shape in shapes], made


def equations(jaxpr):
    """Every equation, inner programs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_the_base_is_not_copied(models):
    _, base = models["llama"]
    params = lora.attach(*adapted(base))
    for path, leaf in jax.tree_util.tree_leaves_with_path(base):
        node = params
        for part in path:
            node = node[part.key]
        assert node is leaf


def test_only_the_targets_are_adapted(models):
    _, base = models["gpt2"]
    found = lora.init(Lora(rank=2, targets=("q_proj", "down_proj")), jax.random.key(0), base)
    assert {name: pair["lora_a"].shape for name, pair in found["blocks"].items()} == {
        "q_proj": (2, 16, 2),
        "down_proj": (2, 24, 2),
    }
    every = lora.init(Lora(rank=2), jax.random.key(0), base)
    assert list(every["blocks"]) == ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    # A projection starts alike whatever else is adapted.
    np.testing.assert_array_equal(
        found["blocks"]["q_proj"]["lora_a"], every["blocks"]["q_proj"]["lora_a"]
    )


def test_a_starts_uniform_within_one_over_root_in():
    base = {"blocks": {"q_proj": {"kernel": jnp.zeros((4, 100, 3))}}}
    a = lora.init(Lora(rank=50), jax.random.key(0), base)["blocks"]["q_proj"]["lora_a"]
    # 20,000 draws of U(-0.1, 0.1): the variance is 0.1² / 3, to 3 standard errors of about 0.6 %.
    assert np.abs(a).max() <= 0.1
    np.testing.assert_allclose(np.var(a), 0.01 / 3, rtol=0.02)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 2.0}, "rank=2.0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"targets": ()}, "targets"),
        ({"targets": ("q_prj",)}, "did you mean 'q_proj'"),
    ],
)
def test_wrong_values_are_named(fields, says):
    with pytest.raises(ValueError, match=says):
        Lora(**fields)


def test_a_target_the_model_lacks_is_named(models):
    _, base = models["gpt2"]
    with pytest.raises(ValueError, match=r"no gate_proj; it has q_proj.*down_proj"):
        lora.init(Lora(targets=("gate_proj",)), jax.random.key(0), base)


def test_an_array_of_both_trees_is_an_error(models):
    _, base = models["gpt2"]
    with pytest.raises(ValueError, match="embed/embedding is in both"):
        lora.attach(base, {"embed": {"embedding": jnp.zeros(1)}})


def test_adapters_without_a_scale_are_an_error(models, tokens, full):
    lm, base = models["gpt2"]
    params = lora.attach(base, lora.init(SPEC, jax.random.key(0), base))
    with pytest.raises(ValueError, match="q_proj has lora_a without"):
        lm.hidden(params, tokens, full)


def test_adapters_are_split_as_their_kernels():
    for name in lora.PROJECTIONS:
        d_in, d_out = PARAM_AXES[f"{name}/kernel"]
        assert PARAM_AXES[f"{name}/lora_a"] == (d_in, None)
        assert PARAM_AXES[f"{name}/lora_b"] == (None, d_out)


def test_a_mesh_changes_nothing(tokens, full):
    config = transformer_config(
        "llama", vocab_size=32, num_layers=2, num_heads=4, d_model=16, d_ff=24, max_positions=32
    )
    lm = make_lm(config)
    params = lora.attach(*adapted(lm.init(jax.random.key(0))))
    mesh = sharding.make_mesh(2, 2)
    layout = sharding.tree_sharding(mesh, params)
    b = layout["blocks"]["up_proj"]["lora_b"].spec
    assert tuple(b) == (None, None, "tensor")
    placed = jax.device_put(params, layout)
    one = score(lm, params, tokens, full, response_length=9)
    four = score(lm, placed, tokens, full, response_length=9)
    np.testing.assert_allclose(one.log_probs, four.log_probs, atol=1e-5)
