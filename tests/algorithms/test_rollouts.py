"""What the reward sees of a response, and how scores are delivered: known answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.algorithms import rollouts
from jaxrlhf.algorithms.rollouts import Truncation
from jaxrlhf.inference import Generation
from jaxrlhf.sampling import Sampling

EOS, STOP = 1, 7
# Prompts of two columns (the first row's is padded), then four response columns.
ROLLOUT = Generation(
    tokens=jnp.array(
        [
            [0, STOP, 3, STOP, 4, STOP],  # a stop token at 1, another at 3; cut by length
            [5, 6, STOP, 3, 4, 5],  # a stop token at 0 only
            [5, 6, 3, 4, EOS, 0],  # ended
            [5, 6, 3, EOS, STOP, STOP],  # ended; what stands after the end is no token
        ]
    ),
    mask=jnp.array(
        [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool
    ),
    log_probs=jnp.zeros((4, 4)),
    finished=jnp.array([False, False, True, True]),
)
PLAIN = {
    "normalize": False,
    "clip": None,
    "missing_eos_penalty": None,
    "missing_eos_rule": "replace",
}


@pytest.mark.parametrize(
    ("truncation", "seen", "complete"),
    [
        (None, [4, 4, 3, 2], [False, False, True, True]),
        (Truncation((STOP,)), [2, 1, 3, 2], [True, True, False, False]),
        (Truncation((STOP,), after=1), [2, 4, 3, 2], [True, False, False, False]),
        (Truncation((STOP,), after=2), [4, 4, 3, 2], [True, False, False, False]),
        (Truncation((STOP, EOS), after=1), [2, 4, 3, 2], [True, False, True, True]),
        (Truncation((STOP, EOS), after=2), [4, 4, 3, 2], [True, False, True, False]),
    ],
)
def test_what_the_reward_sees(truncation, seen, complete):
    mask, found = rollouts.visible(ROLLOUT, truncation)
    np.testing.assert_array_equal(found, complete)
    np.testing.assert_array_equal(mask[:, :2], ROLLOUT.mask[:, :2])  # the prompt, stop or not
    np.testing.assert_array_equal(mask[:, 2:], np.arange(4)[None, :] < np.array(seen)[:, None])


SCORES, COMPLETE = jnp.array([3.0, -5.0, 0.5, 2.0]), jnp.array([True, True, False, False])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [3, -5, 0.5, 2]),
        ({"clip": 1.5}, [1.5, -1.5, 0.5, 1.5]),
        ({"missing_eos_penalty": -1.0}, [3, -5, -1, -1]),
        ({"missing_eos_penalty": 1.0, "missing_eos_rule": "subtract"}, [3, -5, -0.5, 1]),
        # Clipped first: the penalty is not.
        ({"missing_eos_penalty": -4.0, "clip": 1.5}, [1.5, -1.5, -4, -4]),
        (
            {"missing_eos_penalty": 4.0, "missing_eos_rule": "subtract", "clip": 1.5},
            [1.5, -1.5, -3.5, -2.5],
        ),
    ],
)
def test_scores_are_shaped_in_order(changes, expected):
    extra, scores, metrics = rollouts.shape_scores(
        {"kl_coef": 1}, SCORES, COMPLETE, **PLAIN | changes
    )
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert extra == {"kl_coef": 1} and metrics == {}


def start() -> dict:
    return {name: jnp.float32(0) for name in ("score_count", "score_mean", "score_m2")}


def test_running_moments_equal_numpy_over_several_batches():
    """Of sizes 5, 1 and 8, far from 0: mean 1000, standard deviation 2."""
    rng = np.random.default_rng(0)
    extra, seen = start(), np.zeros(0)
    for size in (5, 1, 8):
        batch = rng.normal(1000, 2, size).astype(np.float32)
        seen = np.concatenate([seen, batch.astype(np.float64)])
        extra = rollouts.running_moments(extra, jnp.asarray(batch))
        assert float(extra["score_count"]) == len(seen)
        assert float(extra["score_mean"]) == pytest.approx(seen.mean(), rel=1e-6)
        assert float(extra["score_m2"]) == pytest.approx(seen.var() * len(seen), rel=1e-3, abs=1e-3)


def test_scores_are_standardised_by_all_that_were_seen_then_clipped():
    """Moments of 1, 3 and then of 1, 3, 8, 8: mean 5, variance (16 + 4 + 9 + 9)/4 = 9.5."""
    options = PLAIN | {"normalize": True}
    complete = jnp.array([True, True])
    extra, scores, metrics = rollouts.shape_scores(
        {**start(), "kl_coef": 1}, jnp.array([1, 3]), complete, **options
    )
    np.testing.assert_allclose(scores, [-1, 1], atol=1e-6)
    extra, scores, metrics = rollouts.shape_scores(
        extra, jnp.array([8, 8]), complete, **options | {"clip": 0.9}
    )
    np.testing.assert_allclose(scores, [0.9, 0.9], atol=1e-6)  # 3/√9.5 = .973
    assert float(metrics["objective/score_gain"]) == pytest.approx(1 / np.sqrt(9.5), rel=1e-6)
    assert extra["kl_coef"] == 1


def test_equal_scores_are_standardised_to_zero():
    _, scores, metrics = rollouts.shape_scores(
        start(), jnp.full(4, 2.5), COMPLETE, **PLAIN | {"normalize": True}
    )
    np.testing.assert_array_equal(scores, np.zeros(4))
    assert np.isfinite(metrics["objective/score_gain"]) and metrics["objective/score_gain"] > 0


def test_repetition_counts_tokens_seen_before_in_the_response():
    tokens = jnp.array([[3, 4, 3, 3], [3, 3, 3, 3]])
    mask = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0]], bool)
    # 3 again twice in the first row, nothing in the second: 2 of 5 tokens
    assert float(rollouts.repetition(tokens, mask)) == pytest.approx(0.4)
    assert float(rollouts.repetition(tokens, mask & False)) == 0


def test_full_sampling_passes():
    rollouts.check_sampling(Sampling(max_new_tokens=4, temperature=0.7, stop_ids=(EOS,)))
    rollouts.check_sampling(Sampling(max_new_tokens=4, min_new_tokens=4))  # no stop token to forbid
