"""Token rewards and GAE against their definitions, written as slowly as possible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import advantages

gae, token_rewards = jax.jit(advantages.gae), jax.jit(advantages.token_rewards)


def test_a_score_of_point_seven_arrives_as_point_seven() -> None:
    """Invariant A3: also from bool, int and bfloat16, whose neighbours would become 0 in an int."""
    mask = jnp.array([[True, True, False]])
    kl = jnp.zeros((1, 3))
    for score, expected in (
        (jnp.array([0.7]), 0.7),
        (np.array([0.7]), 0.7),
        (jnp.array([3]), 3.0),
        (jnp.array([True]), 1.0),
        (jnp.array([0.7], jnp.bfloat16), 0.69921875),  # the nearest bfloat16 to .7
    ):
        rewards = token_rewards(score, kl, mask, kl_coef=0.1)
        assert rewards.dtype == jnp.float32
        assert float(np.sum(rewards)) == pytest.approx(expected, abs=1e-7)


def test_the_score_sits_on_the_last_real_token_and_the_row_adds_up() -> None:
    rng = np.random.default_rng(0)
    scores, kl = rng.normal(size=5).astype("f4"), rng.normal(size=(5, 4)).astype("f4")
    mask = np.array(
        [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], bool
    )  # full, right-padded, left-padded, with a gap, empty
    rewards = np.asarray(token_rewards(scores, kl, mask, kl_coef=0.3))
    penalty = np.where(mask, -0.3 * kl, 0.0)
    for row, last in enumerate([3, 1, 3, 3]):
        expected = penalty[row].copy()
        expected[last] += scores[row]
        np.testing.assert_allclose(rewards[row], expected, atol=1e-6)
    np.testing.assert_array_equal(rewards[4], 0.0)
    totals = scores - 0.3 * np.where(mask, kl, 0.0).sum(1)
    np.testing.assert_allclose(rewards.sum(1)[:4], totals[:4], atol=1e-6)


def test_rewards_and_advantages_are_constants_to_the_gradient() -> None:
    mask = jnp.ones((1, 3), bool)

    def through(scores: jax.Array, kl: jax.Array, values: jax.Array) -> jax.Array:
        rewards = token_rewards(scores, kl, mask, kl_coef=0.1)
        a, g = gae(rewards, values, mask, gamma=1.0, lam=0.9)
        b, h = gae(kl, values, mask, gamma=1.0, lam=0.9)
        return jnp.sum(rewards) + jnp.sum(a + g + b + h)

    for gradient in jax.jit(jax.grad(through, (0, 1, 2)))(
        jnp.ones(1), jnp.ones((1, 3)), jnp.ones((1, 3))
    ):
        np.testing.assert_array_equal(gradient, 0.0)


def slow_gae(r: np.ndarray, v: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """O(T²), float64: A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} − V_t, V after the end 0."""
    after = np.append(v[1:], 0.0)
    delta = r + gamma * after - v
    n, decay = len(r), gamma * lam
    return np.array([sum(decay ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_the_definition_on_the_real_tokens(gamma: float, lam: float) -> None:
    """Ragged, left-padded, with gaps: the real tokens of a row, as if nothing were between them."""
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 8, 9)).astype("f4")
    mask = rng.random((8, 9)) < 0.6
    mask[0], mask[1], mask[2] = True, np.arange(9) < 4, np.arange(9) >= 5
    mask[3] = False
    found, returns = map(np.asarray, gae(rewards, values, mask, gamma=gamma, lam=lam))
    assert found.dtype == returns.dtype == np.float32
    for row, real in enumerate(mask):
        expected = slow_gae(rewards[row, real], values[row, real], gamma, lam)
        np.testing.assert_allclose(found[row][real], expected, atol=1e-5)
        np.testing.assert_allclose(returns[row][real], expected + values[row, real], atol=1e-5)
    assert not found[~mask].any() and not returns[~mask].any()


def test_gae_oracle() -> None:
    # invariants D. From the end: 2 − .9 = 1.1;  .9 − .8 + .95 · 1.1 = 1.145;  .1 + .95 · 1.145 ...
    values = np.array([[0.5, 0.6, 0.7, 0.8, 0.9, 1.0]], np.float32)
    mask = np.arange(6)[None] < 5
    scored_at = lambda t: 2.0 * np.eye(6, dtype=np.float32)[None, t]  # noqa: E731
    found, _ = gae(scored_at(4), values, mask, gamma=1.0, lam=0.95)
    np.testing.assert_allclose(
        np.asarray(found)[0], [1.2669, 1.2284, 1.1878, 1.1450, 1.1000, 0.0], atol=5e-5
    )
    # The score in the slot after the end, and V = 1 there: what a wrong mask would give.
    wrong, _ = gae(scored_at(5), values, np.ones((1, 6), bool), gamma=1.0, lam=0.95)
    np.testing.assert_allclose(np.asarray(wrong)[0, [0, 4]], [1.2262, 1.0500], atol=5e-5)


def test_without_values_or_discount_gae_is_the_reward_to_come() -> None:
    rewards = jnp.array([[1.0, 2.0, 4.0]])
    found, returns = gae(rewards, jnp.zeros((1, 3)), jnp.ones((1, 3), bool), gamma=1.0, lam=1.0)
    np.testing.assert_array_equal(found, [[7.0, 6.0, 4.0]])
    np.testing.assert_array_equal(found, returns)


def test_nothing_behind_the_mask_leaks() -> None:
    """Invariant A6: any value at all in the padding, and every output is the same, bit for bit."""
    rng = np.random.default_rng(2)
    rewards, values = rng.normal(size=(2, 4, 6)).astype("f4")
    mask = np.arange(6)[None] < np.array([6, 4, 1, 0])[:, None]
    scores = np.ones(4, np.float32)

    @jax.jit
    def everything(rewards: jax.Array, values: jax.Array) -> tuple[jax.Array, ...]:
        shaped = token_rewards(scores, rewards, mask, kl_coef=0.2)
        return shaped, *gae(rewards, values, mask, gamma=0.9, lam=0.8)

    clean = everything(rewards, values)
    for poison in (np.nan, np.inf, 1e30, -3.0):
        dirty = everything(*(np.where(mask, x, np.float32(poison)) for x in (rewards, values)))
        for a, b in zip(clean, dirty, strict=True):
            np.testing.assert_array_equal(a, b)


def test_wrong_arguments_are_named() -> None:
    ones, mask = jnp.ones((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(AssertionError, match="scores"):
        advantages.token_rewards(jnp.ones((2, 1)), ones, mask, kl_coef=0.1)
    with pytest.raises(AssertionError, match=r"values.*bfloat16"):
        advantages.gae(ones, ones.astype(jnp.bfloat16), mask, gamma=1.0, lam=1.0)
    with pytest.raises(AssertionError, match=r"mask.*int32"):
        advantages.gae(ones, ones, mask.astype(jnp.int32), gamma=1.0, lam=1.0)
