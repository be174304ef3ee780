"""Which way it goes: the losses drive a two-armed bandit where the reward says (invariant B8).

The whole expectation is taken, no sampling: each arm is a row of the batch, weighted by the policy
that would have drawn it. So every statement is exact, and a flipped sign cannot hide in noise.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import advantages, divergences, policy

ARMS = jnp.array([0.0, 0.0])
ONE_TOKEN = jnp.ones((2, 1), bool)


@partial(jax.jit, static_argnames="steps")
def train(
    logits: jax.Array, scores: jax.Array, ref_logits: jax.Array, kl_coef: float, *, steps: int
) -> jax.Array:
    """`steps` rounds of: sample (both arms, weighted), shape the reward, one gradient step."""

    def update(logits: jax.Array, _) -> tuple[jax.Array, None]:
        old, ref = jax.nn.log_softmax(logits)[:, None], jax.nn.log_softmax(ref_logits)[:, None]
        rewards = advantages.token_rewards(
            scores, divergences.k1(old, ref), ONE_TOKEN, kl_coef=kl_coef
        )
        advantage, _ = advantages.gae(rewards, jnp.zeros((2, 1)), ONE_TOKEN, gamma=1.0, lam=0.95)

        def loss(logits: jax.Array) -> jax.Array:
            new = jax.nn.log_softmax(logits)[:, None]
            losses = policy.clipped_surrogate(new, old, advantage, clip_range=0.2)
            return jnp.sum(jax.lax.stop_gradient(jnp.exp(old)) * losses)

        return logits - 0.2 * jax.grad(loss)(logits), None

    return jax.lax.scan(update, logits, None, length=steps)[0]


def mass(logits: jax.Array) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits))


def kl(logits: jax.Array, ref_logits: jax.Array) -> float:
    return float(jax.jit(divergences.exact)(logits, ref_logits))


def test_one_step_moves_mass_to_the_rewarded_arm_and_the_negated_reward_mirrors_it() -> None:
    up = mass(train(ARMS, jnp.array([1.0, 0.0]), ARMS, 0.0, steps=1))
    assert up[0] > 0.5 + 0.01
    # ∇ of −Σ p A with p = ½, A = (1, 0): −(.25, −.25); a step of .2: logits (.05, −.05).
    assert up[0] == pytest.approx(1 / (1 + np.exp(-0.1)), abs=1e-6)
    down = mass(train(ARMS, jnp.array([-1.0, 0.0]), ARMS, 0.0, steps=1))
    np.testing.assert_allclose(down, up[::-1], atol=1e-7)


def test_many_steps_find_the_better_arm() -> None:
    assert mass(train(ARMS, jnp.array([1.0, 0.0]), ARMS, 0.0, steps=200))[0] > 0.95
    assert mass(train(ARMS, jnp.array([0.0, 1.0]), ARMS, 0.0, steps=200))[0] < 0.05


def test_without_a_reward_the_penalty_leads_back_to_the_reference() -> None:
    """From either side; with the sign of the penalty flipped it would run away instead."""
    ref = jnp.array([0.5, -0.5])
    for start in (jnp.array([2.0, -1.0]), jnp.array([-1.0, 1.0])):
        first = train(start, jnp.zeros(2), ref, 0.5, steps=1)
        last = train(start, jnp.zeros(2), ref, 0.5, steps=400)
        assert kl(first, ref) < kl(start, ref)
        np.testing.assert_allclose(mass(last), mass(ref), atol=1e-3)
        away = train(start, jnp.zeros(2), ref, -0.5, steps=1)
        assert kl(away, ref) > kl(start, ref)


def test_a_larger_coefficient_ends_nearer_to_the_reference() -> None:
    """The optimum is p ∝ ref · exp(r / β): invariant A12, and the number itself."""
    final = []
    for beta in (0.5, 1.0, 2.0):
        logits = train(ARMS, jnp.array([1.0, 0.0]), ARMS, beta, steps=600)
        assert mass(logits)[0] == pytest.approx(1 / (1 + np.exp(-1 / beta)), abs=2e-3)
        final.append(kl(logits, ARMS))
    assert final[0] > final[1] > final[2] > 0.0


def test_kl_as_a_loss_falls_for_the_estimators_meant_for_it() -> None:
    logits, ref = jnp.array([1.0, -1.0]), ARMS
    for estimator in (divergences.k2, divergences.k1_straight_through):

        def loss(z: jax.Array, estimator=estimator) -> jax.Array:  # type: ignore[no-untyped-def]
            log_p = jax.nn.log_softmax(z)
            p = jax.lax.stop_gradient(jnp.exp(log_p))
            return jnp.sum(p * estimator(log_p, jax.nn.log_softmax(ref)))

        assert kl(logits - 0.1 * jax.jit(jax.grad(loss))(logits), ref) < kl(logits, ref)
