"""An ensemble of reward predictors from comparisons of segments (Christiano et al. 2017, 2.2).

    P(a preferred to b) = (1 - lapse) * sigmoid(sum of r over a - sum of r over b) + lapse / 2

Each member has a table of rewards, one a state, and learns a bootstrap sample of the comparisons,
as many as there are, drawn with replacement. Those it did not draw, 1/e of them, are its
validation set. The weight of its l2 penalty is adapted so that the validation loss is between 1.1
and 1.5 times the training loss. For a policy, every member's rewards are brought to mean 0 and
standard deviation 1 over states, and averaged.

Deviations from the paper:
1. A table in place of a network, over the states of a small world.
2. Members are trained anew for every set of comparisons, not further.
3. Rewards are standardised over all states, not over those that the policy visits.

Deliberately not here: which comparisons to ask for (`evals/acquisition.py`), and any policy.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxrlhf.losses import preference

CHECKS, STEPS, RATE = 8, 60, 0.05  # of the l2 weight; Adam's steps between two, and its rate
FIRST, LEAST, MOST = 1e-2, 1e-6, 1.0  # weights of the l2 penalty
TOO_CLOSE, TOO_FAR = 1.1, 1.5  # validation loss over training loss


class Comparisons(NamedTuple):
    """N compared pairs of segments over S states."""

    visits: np.ndarray
    """`[N, S]` frames of segment a in each state, minus those of segment b."""
    labels: np.ndarray
    """`[N]` probability that a is the better one: 1, 0, or 1/2 for a tie."""

    def and_(self, more: "Comparisons") -> "Comparisons":
        return Comparisons(*(np.concatenate(pair) for pair in zip(self, more, strict=True)))


class Ensemble(NamedTuple):
    """M trained members."""

    rewards: np.ndarray
    """`[M, S]` nats a frame."""
    decay: np.ndarray
    """`[M]` the l2 weight that each ended with."""

    def gaps(self, visits: np.ndarray) -> np.ndarray:
        """`[M, N]` nats by which each member prefers segment a."""
        return self.rewards @ visits.T

    def standardised(self) -> np.ndarray:
        """`[S]` the mean over members of rewards with mean 0 and standard deviation 1."""
        centred = self.rewards - self.rewards.mean(axis=1, keepdims=True)
        return (centred / np.maximum(centred.std(axis=1, keepdims=True), 1e-9)).mean(axis=0)


def visits(a: np.ndarray, b: np.ndarray, *, states: int) -> np.ndarray:
    """`[N, states]` how often segments `a` `[N, F]` are in each state, minus the same of `b`."""

    def counts(segments: np.ndarray) -> np.ndarray:
        found = np.zeros((len(segments), states))
        np.add.at(found, (np.arange(len(segments))[:, None], segments), 1.0)
        return found

    return counts(a) - counts(b)


def fit(compared: Comparisons, *, members: int, lapse: float, rng: np.random.Generator) -> Ensemble:
    """Train `members` tables of rewards."""
    rows = len(compared.labels)
    drawn = rng.multinomial(rows, np.full(rows, 1 / rows), size=members)  # [M, N]
    data = tuple(jnp.asarray(x, jnp.float32) for x in (*compared, drawn, drawn == 0))
    rewards = jnp.zeros((members, compared.visits.shape[1]), jnp.float32)
    decay = jnp.full(members, FIRST, jnp.float32)
    begin = (rewards, _optimizer().init(rewards), decay, jnp.float32(lapse), *data)
    (rewards, _, decay, *_), _ = jax.lax.scan(_until_a_check, begin, None, length=CHECKS)
    return Ensemble(np.asarray(rewards, np.float64), np.asarray(decay, np.float64))


def adapted(decay: ArrayLike, training: ArrayLike, validation: ArrayLike) -> jax.Array:
    """`[M]` the next l2 weights: doubled for who overfits, halved for who could fit more."""
    decay, ratio = jnp.asarray(decay), jnp.asarray(validation) / jnp.asarray(training)
    changed = jnp.where(ratio > TOO_FAR, 2 * decay, jnp.where(ratio < TOO_CLOSE, decay / 2, decay))
    return jnp.clip(changed, LEAST, MOST)


def losses(rewards, lapse, seen, labels, drawn, left_out) -> tuple[jax.Array, jax.Array]:
    """`[M]` mean loss on the rows that each member drew, as often as it did, and on the others."""
    scores = rewards @ seen.T
    each = preference.bradley_terry(
        scores, jnp.zeros_like(scores), label=jnp.broadcast_to(labels, scores.shape), lapse=lapse
    )
    return tuple((each * w).sum(1) / jnp.maximum(w.sum(1), 1.0) for w in (drawn, left_out))


def _until_a_check(carry, _):
    """`STEPS` steps of Adam; a function of the module, so that it is compiled once a shape."""
    rewards, state, decay, *rest = carry

    def loss(rewards: jax.Array) -> jax.Array:
        training, _ = losses(rewards, *rest)
        return (training + decay * jnp.square(rewards).sum(1)).sum()

    def step(carry, _):
        rewards, state = carry
        updates, state = _optimizer().update(jax.grad(loss)(rewards), state)
        return (optax.apply_updates(rewards, updates), state), None

    (rewards, state), _ = jax.lax.scan(step, (rewards, state), None, length=STEPS)
    return (rewards, state, adapted(decay, *losses(rewards, *rest)), *rest), None


_optimizer = partial(optax.adam, RATE)
