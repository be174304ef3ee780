"""Rewards: anything callable, one float32 score a sequence, whatever it returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables

from jaxrlhf import rewards
from jaxrlhf.errors import NonFiniteError, UserError
from jaxrlhf.losses import advantages
from jaxrlhf.rewards import Rollout

# Two rows: prompts of two columns (one padded), responses of three (one token is not shown).
ROLLOUT = Rollout(
    tokens=jnp.array([[0, 5, 2, 3, 4], [5, 4, 3, 2, 5]]),
    mask=jnp.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool),
    prompt_length=2,
    rows=np.array([1, 0]),
)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([0.7, -0.7], [0.7, -0.7]),
        (np.array([0.7, -0.7]), [0.7, -0.7]),  # float64
        (jnp.array([0.75, -0.75], jnp.bfloat16), [0.75, -0.75]),
        (np.array([3, -2], np.int64), [3, -2]),
        (jnp.array([3, 200], jnp.uint8), [3, 200]),
        (np.array([True, False]), [1, 0]),
        ([1, 0.7], [1, 0.7]),
    ],
)
def test_any_number_becomes_float32_and_arrives_whole(returned, expected):
    scores = rewards.as_scores(returned, batch_size=2)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, np.array(expected, np.float32), rtol=0)
    # A score of .7 in, token rewards that sum to .7 out.
    mask = jnp.array([[True, True, True], [True, False, False]])
    tokens = advantages.token_rewards(scores, jnp.zeros((2, 3)), mask, kl_coef=0.1)
    np.testing.assert_allclose(jnp.sum(tokens, axis=1), scores, rtol=0)


@pytest.mark.parametrize("returned", [0.5, [0.5], [[0.5, 0.5]], [[0.5], [0.5]], [1, 2, 3], []])
def test_not_one_number_a_sequence_is_refused(returned):
    with pytest.raises(UserError, match=r"one score a sequence: shape \(2,\), got \("):
        rewards.as_scores(returned, batch_size=2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_names_its_row(bad):
    with pytest.raises(NonFiniteError, match=r"reward of row 1 is .*, not a finite number"):
        rewards.as_scores([0.5, bad], batch_size=2)


def test_a_model_is_read_at_the_last_visible_token():
    """Tokens 4 and 2, although the second row goes on to 5 behind the mask."""
    params = {"lm": tables.table(3), "head": tables.head(2)}
    found = rewards.from_model(tables.SCALAR, params)(ROLLOUT)
    table, head = tables.table(3)["embed"]["embedding"], tables.head(2)
    expected = [table[token] @ head["kernel"] + head["bias"] for token in (4, 2)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def words(ids) -> str:
    return " ".join(["pad", "eos", "two", "three", "four", "five"][i] for i in ids)


def test_texts_are_what_the_mask_shows():
    prompts, completions = rewards.texts(ROLLOUT, words)
    assert prompts == ["five", "five four"]
    assert completions == ["two three four", "three two"]


def test_a_rule_on_text_gets_prompts_completions_and_columns_of_its_rows():
    calls = []

    def rule(*, prompts, completions, gold):
        calls.append((prompts, completions, gold))
        return [0.7, 2]

    score = rewards.from_text(rule, words, {"gold": ["first", "second"]})
    np.testing.assert_allclose(rewards.as_scores(score(ROLLOUT), batch_size=2), [0.7, 2])
    assert calls == [(["five", "five four"], ["two three four", "three two"], ["second", "first"])]


def test_without_row_numbers_a_rule_gets_text_alone():
    score = rewards.from_text(
        lambda prompts, completions: [len(c) for c in completions], words, {"x": [1]}
    )
    assert score(ROLLOUT._replace(rows=None)) == [len("two three four"), len("three two")]


def constant(*values):
    return lambda rollout: np.array(values)


def test_a_weighted_sum_adds_integers_and_floats():
    both = rewards.weighted_sum([(constant(1, 2), 0.5), (constant(0.25, True), -2.0)])
    np.testing.assert_allclose(both(ROLLOUT), [0.0, -1.0])


@pytest.mark.parametrize(
    ("rule", "penalty", "expected"),
    # Members say (1, 4) and (3, 4): means (2, 4), minima (1, 4), population variances (1, 0).
    [("mean", 0.0, [2, 4]), ("min", 0.0, [1, 4]), ("uncertainty", 0.5, [1.5, 4])],
)
def test_ensembles_by_hand(rule, penalty, expected):
    members = [constant(1, 4), constant(3.0, 4.0)]
    score = rewards.ensemble(members, rule=rule, penalty=penalty)
    np.testing.assert_allclose(score(ROLLOUT), expected)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="ensemble rule 'median': choose one of mean, min"):
        rewards.ensemble([constant(1)], rule="median")


def test_members_are_checked_one_by_one():
    """A member that returns one column too many must not be broadcast."""
    bad = constant([1.0], [2.0])
    for score in (rewards.ensemble([constant(1, 2), bad]), rewards.weighted_sum([(bad, 1.0)])):
        with pytest.raises(UserError, match="one score a sequence"):
            score(ROLLOUT)


def test_scores_stay_on_the_device():
    assert isinstance(rewards.as_scores([1, 2], batch_size=2), jax.Array)
