"""Training adapters: what is kept, what is copied, what is written, and that it is right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxrlhf import checkpoint, inference, loop
from jaxrlhf.algorithms.base import whole
from jaxrlhf.algorithms.sft import sft
from jaxrlhf.models import Lora, lora

NAMES = [name for name in tiny.CASES if name.startswith("lora")]


def nbytes(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def leaf_names(tree) -> set[str]:
    return {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def equations(jaxpr):
    """Every equation, those of inner programs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program):
            if is_program(inner):
                yield from equations(getattr(inner, "jaxpr", inner))


def is_program(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


@pytest.mark.parametrize("name", NAMES)
def test_the_optimiser_keeps_moments_of_adapters_alone(name):
    """Adam: two moments a trained number, and a counter (int32) beside them."""
    case = tiny.CASES[name](optax.adam(1e-2))
    state = case.algorithm.init(case.params, jax.random.key(0))
    # L = 1, D = 16, r = 2, d_ff = 32. q, k, v, o: r·(16 + 16) each; gate, up, down: r·(16 + 32).
    adapters = 4 * 2 * 32 + 3 * 2 * 48
    head = 16 + 1
    count = {
        "lora-sft": adapters,
        "lora-reward": adapters + head,
        "lora-ppo": 2 * adapters + head,
        "lora-ppo-shared": adapters + head,
    }[name]
    assert nbytes(state.params) == 4 * count
    assert nbytes(state.opt_state) == 2 * 4 * count + 4


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_holds_no_base(name, tmp_path):
    case = tiny.case(name)
    store = checkpoint.Checkpoints(tmp_path)
    loop.fit(case.algorithm, case.params, tiny.Cycle(case.batches), steps=1, seed=0, store=store)
    store.close()
    stored = checkpoint.stored_shapes(tmp_path / "1" / "state")
    params = [path for path in stored if path.startswith("params/")]
    assert len(params) == len(jax.tree.leaves(case.params))
    assert not any("embed" in path or path.endswith("_proj/kernel") for path in stored)


def test_the_base_is_the_reference_and_stays_where_it_is():
    """The same arrays before and after, alive, unchanged: nothing donated, nothing written."""
    case = tiny.case("lora-ppo")
    frozen = case.algorithm.frozen
    before = jax.tree.map(np.array, frozen)
    pointers = jax.tree.map(lambda leaf: leaf.unsafe_buffer_pointer(), frozen)
    assert pointers["policy"] == pointers["value"]["lm"]
    loop.fit(case.algorithm, case.params, tiny.Cycle(case.batches), steps=2, seed=0)
    assert case.algorithm.frozen is frozen
    assert jax.tree.map(lambda leaf: leaf.unsafe_buffer_pointer(), frozen) == pointers
    jax.tree.map(np.testing.assert_array_equal, frozen, before)


@pytest.mark.parametrize("name", ["lora-ppo", "lora-ppo-shared"])
def test_training_holds_no_second_copy_of_the_base(name):
    """Bytes of new arrays after an update: adapters, two moments, a batch; far below a base."""
    case = tiny.case(name)
    base = nbytes({k: v for k, v in case.algorithm.frozen["policy"].items()})
    known = {id(array) for array in jax.live_arrays()}
    held = []

    def hook(step, state, batch):
        held.append(sum(a.nbytes for a in jax.live_arrays() if id(a) not in known))
        return {}

    state = loop.fit(
        case.algorithm, case.params, tiny.Cycle(case.batches), steps=2, seed=0, hooks=[hook]
    )
    assert base > 2 * nbytes(state.params)  # or the bound below would say nothing
    batch = nbytes(state.params) * 3 + 20_000
    assert max(held) < batch, (held, base)


@pytest.mark.parametrize("name", NAMES)
def test_an_update_makes_no_weight(name):
    """A·B is never there: no product over the rank has a kernel's shape."""
    first = tiny.first_update(name)
    algorithm = first.case.algorithm
    program = jax.make_jaxpr(algorithm.update)(
        first.state, first.batch, jax.random.key(0), algorithm.frozen
    )
    kernels = {(16, 16), (16, 32), (32, 16)}
    kernels |= {(2, *shape) for shape in kernels}
    made = [
        eqn
        for eqn in equations(program.jaxpr)
        if eqn.primitive.name == "dot_general"
        and eqn.outvars[0].aval.shape in kernels
        and all(tiny.LORA.rank in var.aval.shape[-2:] for var in eqn.invars)
    ]
    assert not made


def test_scoring_reads_the_base_itself(monkeypatch):
    """Outside of the sampler, policy and values are computed from the base's own arrays."""
    case = tiny.case("lora-ppo")
    kernel = case.algorithm.frozen["policy"]["blocks"]["q_proj"]["kernel"]
    read, score, values = [], inference.score, inference.values

    def spy(function):
        def called(model, params, *rest, **options):
            body = params.get("lm", params)
            read.append(body["blocks"]["q_proj"]["kernel"] is kernel)
            return function(model, params, *rest, **options)

        return called

    monkeypatch.setattr(inference, "score", spy(score))
    monkeypatch.setattr(inference, "values", spy(values))
    state = case.algorithm.init(case.params, jax.random.key(0))
    case.algorithm.collect(state, lambda: case.batches[0], jax.random.key(1))
    assert read == [True, True, True]  # policy, reference, values


def test_the_first_step_starts_at_the_reference():
    """B is zero: policy and reference are the same to the bit, so that the KL is 0."""
    first = tiny.first_update("lora-ppo")
    np.testing.assert_array_equal(first.batch["log_probs"], first.batch["ref_log_probs"])
    assert float(first.metrics["objective/kl_k1"]) == 0.0
    moved, _ = first.case.algorithm.collect(
        first.new, lambda: first.case.batches[0], jax.random.key(1)
    )
    assert np.abs(moved["log_probs"] - moved["ref_log_probs"]).max() > 1e-3


def test_the_sampler_is_the_policy_that_trains():
    """Sampling reads merged weights, training the two factors: they agree after steps too."""
    case = tiny.CASES["lora-ppo"](tiny.adam(3e-2))
    rows = []
    loop.fit(
        case.algorithm,
        case.params,
        tiny.Cycle(case.batches),
        steps=3,
        seed=0,
        on_step=lambda step, metrics: rows.append(metrics),
    )
    assert rows[-1]["objective/kl_k3"] > 1e-3
    assert max(row["rollout/sampler_logprob_gap"] for row in rows) < 1e-4


def test_one_step_of_full_rank_adapters_is_a_step_of_the_weights():
    """With A = I (r = in) and s = 1 the gradient of B is that of W: SGD moves W' as it moves W."""
    full = tiny.sft_case(optax.sgd(0.1))
    spec = Lora(rank=16, alpha=16.0, targets=("q_proj",))
    frozen = lora.frozen(spec, full.params)
    adapters = lora.init(spec, jax.random.key(0), full.params)
    pair = adapters["blocks"]["q_proj"]
    pair["lora_a"] = jnp.broadcast_to(jnp.eye(16)[None], pair["lora_a"].shape)
    algorithm = sft(tiny.LM, optax.sgd(0.1), frozen=frozen)
    batch, key = full.batches[0], jax.random.key(0)
    ours, _ = algorithm.update(algorithm.init(adapters, key), batch, key, frozen)
    theirs, _ = full.algorithm.update(full.algorithm.init(full.params, key), batch, key)
    merged = lora.merge(whole(ours.params, frozen))
    found, expected = (p["blocks"]["q_proj"]["kernel"] for p in (merged, theirs.params))
    change = expected - full.params["blocks"]["q_proj"]["kernel"]
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # A has not moved: its gradient is s·xᵀ·g·Bᵀ, and B was 0.
    np.testing.assert_array_equal(ours.params["blocks"]["q_proj"]["lora_a"], pair["lora_a"])


def test_whole_without_a_frozen_part_is_the_trained_one():
    params = {"a": jnp.ones(1)}
    assert whole(params, None) is params


@pytest.mark.parametrize("name", NAMES)
def test_only_adapters_and_the_head_train(name):
    first = tiny.first_update(name)
    assert leaf_names(first.new.params) <= {"lora_a", "lora_b", "kernel", "bias"}
    kernels = [
        path
        for path, _ in jax.tree_util.tree_leaves_with_path(first.new.params)
        if path[-1].key in ("kernel", "bias")
    ]
    assert all(path[-2].key == "head" for path in kernels)
