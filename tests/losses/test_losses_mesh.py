"""Inside another's program: a mesh with Explicit axes and a sharded vocabulary, and shard_map.

The same arrays on one device and spread over a (data 2, tensor 4) mesh: forward and gradient agree.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrlhf.losses import (
    advantages,
    confidence,
    divergences,
    log_probs,
    masked,
    policy,
    supervised,
)

B, T, D, V = 4, 3, 6, 16
LOGITS, TOKENS, HIDDEN = P("data", None, "tensor"), P("data", None), P("data", None, None)
rng = np.random.default_rng(0)
MASK = np.arange(T)[None] < np.array([3, 2, 1, 3])[:, None]
IDS = rng.integers(V, size=(B, T)).astype(np.int32)


def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def from_logits(logits: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    stats = log_probs.from_logits(log_probs.shift(logits), tokens, temperature=0.7)
    return masked.mean(stats.log_probs + 0.3 * stats.entropy, mask)


def chunked(hidden: jax.Array, kernel: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    stats = log_probs.chunked(hidden, kernel, tokens, temperature=0.7, chunk_size=8)
    return masked.mean(stats.log_probs + 0.3 * stats.entropy, mask)


def ragged_chunks(hidden: jax.Array, kernel: jax.Array, tokens: jax.Array, mask: jax.Array):  # type: ignore[no-untyped-def]
    stats = log_probs.chunked(hidden, kernel, tokens, chunk_size=5)
    return masked.mean(stats.log_probs + 0.3 * stats.entropy, mask)


def exact(logits: jax.Array, ref_logits: jax.Array, mask: jax.Array) -> jax.Array:
    return masked.mean(divergences.exact(logits, ref_logits), mask)


def z_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
    return masked.mean(supervised.z_loss(logits), mask)


def ppo(new: jax.Array, old: jax.Array, values: jax.Array, scores: jax.Array, mask: jax.Array):  # type: ignore[no-untyped-def]
    """The whole chain, from scores to the loss."""
    rewards = advantages.token_rewards(scores, divergences.k1(old, 0.9 * old), mask, kl_coef=0.1)
    a, returns = advantages.gae(rewards, values, mask, gamma=1.0, lam=0.95)
    a = masked.whiten(a, mask, shift_mean=True)
    stats = policy.ratio_stats(new, old, mask, clip_range=0.2)
    surrogate = policy.clipped_surrogate(new, old, a, clip_range=0.2)
    value_loss = policy.clipped_value_loss(values, old, returns, clip_range=0.2)
    return masked.mean(surrogate + 0.1 * value_loss, mask) + stats.approx_kl + stats.max


def own_labels(logits: jax.Array, weak: jax.Array, mask: jax.Array) -> jax.Array:
    """A threshold needs the whole batch on every device."""
    weak = confidence.balanced(jax.nn.softmax(weak), mask=mask)
    targets = [
        confidence.mended(logits, weak, progress=0.5, max_weight=0.5, mask=mask),
        confidence.paper(logits, weak, progress=0.5, max_weight=0.5, mask=mask),
    ]
    return sum(masked.mean(confidence.cross_entropy(logits, t), mask) for t in targets)  # type: ignore[return-value]


Case = tuple[Callable[..., jax.Array], list[tuple[np.ndarray, P]]]
CASES: dict[str, Case] = {
    "from_logits": (from_logits, [(normal(B, T, V), LOGITS), (IDS, TOKENS), (MASK, TOKENS)]),
    "chunked, sharded kernel": (
        chunked,
        [
            (normal(B, T, D), HIDDEN),
            (normal(D, V), P(None, "tensor")),
            (IDS, TOKENS),
            (MASK, TOKENS),
        ],
    ),
    "chunked, whole kernel": (
        ragged_chunks,
        [(normal(B, T, D), HIDDEN), (normal(D, V), P()), (IDS, TOKENS), (MASK, TOKENS)],
    ),
    "exact": (
        exact,
        [(normal(B, T, V), LOGITS), (normal(B, T, V), LOGITS), (MASK, TOKENS)],
    ),
    "z_loss": (z_loss, [(normal(B, T, V), LOGITS), (MASK, TOKENS)]),
    "own labels": (
        own_labels,
        [(normal(8, 2), P()), (normal(8, 2), P()), (np.arange(8) < 7, P())],
    ),
    "ppo": (
        ppo,
        [*[(0.3 * normal(B, T), TOKENS) for _ in range(3)], (normal(B), P("data")), (MASK, TOKENS)],
    ),
}


def differentiable(arrays: list[tuple[np.ndarray, P]]) -> tuple[int, ...]:
    return tuple(i for i, (x, _) in enumerate(arrays) if x.dtype == np.float32)


@pytest.mark.parametrize("case", CASES)
def test_explicit_mesh_equals_one_device(case: str, request: pytest.FixtureRequest) -> None:
    loss, arrays = CASES[case]
    step = jax.value_and_grad(loss, differentiable(arrays))
    expected = jax.jit(step)(*(x for x, _ in arrays))
    mesh = request.getfixturevalue("mesh")
    spread = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in arrays]
    value, gradients = jax.jit(step)(*spread)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for i, (a, b) in enumerate(zip(gradients, expected[1], strict=True)):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert jax.typeof(a).sharding == jax.typeof(spread[differentiable(arrays)[i]]).sharding


@pytest.mark.parametrize("case", ["from_logits", "chunked, whole kernel", "ppo"])
def test_inside_shard_map_over_data(case: str) -> None:
    """Each device reduces its rows; the parts add up to the loss of the whole batch."""
    loss, arrays = CASES[case]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = tuple(P("data") if spec != P() else P() for _, spec in arrays)

    def parts(*arrays: jax.Array) -> jax.Array:
        return jax.shard_map(
            lambda *x: loss(*x)[None], mesh=mesh, in_specs=specs, out_specs=P("data")
        )(*arrays).sum()

    def rows(*arrays: jax.Array) -> jax.Array:
        axes = [0 if spec == P("data") else None for spec in specs]

        def one_row(*arrays: jax.Array) -> jax.Array:
            return loss(
                *(x if axis is None else x[None] for x, axis in zip(arrays, axes, strict=True))
            )

        return jnp.sum(jax.vmap(one_row, axes)(*arrays))

    wanted = differentiable(arrays)
    args = [jnp.asarray(x) for x, _ in arrays]
    found = jax.jit(jax.value_and_grad(parts, wanted))(*args)
    expected = jax.jit(jax.value_and_grad(rows, wanted))(*args)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_ratio_stats_of_the_whole_batch_inside_shard_map() -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    new, old = 0.3 * normal(B, T), 0.3 * normal(B, T)

    def local(new: jax.Array, old: jax.Array, mask: jax.Array) -> policy.RatioStats:
        return policy.ratio_stats(new, old, mask, clip_range=0.2, axis_name="data")

    sharded = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P())
    whole = policy.ratio_stats(new, old, MASK, clip_range=0.2)
    np.testing.assert_allclose(jax.jit(sharded)(new, old, MASK), whole, rtol=1e-5)
