"""Any callable is a reward; scores are float32 from the boundary on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrlhf import rewards
from jaxrlhf.errors import NonFiniteError, UserError

ROLLOUT = rewards.Rollout(
    tokens=jnp.array([[0, 5, 2, 3, 1], [4, 5, 2, 1, 0]]),
    mask=jnp.array([[False, True, True, True, True], [True, True, True, True, False]]),
    prompt_length=2,
    rows=np.array([1, 0]),
)


def decode(ids) -> str:
    return " ".join(str(i) for i in ids)


@pytest.mark.parametrize(
    ("returned", "wanted"),
    [
        ([0.7, -0.7], [0.7, -0.7]),
        ([1, 0], [1.0, 0.0]),
        ([True, False], [1.0, 0.0]),
        (np.array([0.7, 2.0]), [0.7, 2.0]),
        (jnp.array([0.75, 1.5], jnp.bfloat16), [0.75, 1.5]),  # exact in bfloat16
    ],
)
def test_scores_of_any_type_become_float32(returned, wanted):
    """Tunix writes scores into an int32 array, where .7 trains as 0 (invariant A3)."""
    scores = rewards.as_scores(returned, batch_size=2)
    assert scores.dtype == jnp.float32
    np.testing.assert_array_equal(scores, np.float32(wanted))


def test_a_reward_of_another_shape_is_an_error():
    with pytest.raises(UserError, match=r"shape \(2,\), got \(2, 1\)"):
        rewards.as_scores([[1.0], [2.0]], batch_size=2)


def test_a_reward_that_is_not_finite_names_its_row():
    with pytest.raises(NonFiniteError, match="row 1 is nan"):
        rewards.as_scores([0.0, float("nan")], batch_size=2)


def test_text_rewards_see_what_the_mask_shows_and_the_columns_of_their_rows():
    seen = {}

    def rule(*, prompts, completions, answer):
        seen.update(prompts=prompts, completions=completions, answer=answer)
        return [len(text.split()) for text in completions]

    reward = rewards.from_text(rule, decode, {"answer": ["first", "second"]})
    assert reward(ROLLOUT) == [3, 2]
    assert seen == {
        "prompts": ["5", "4 5"],
        "completions": ["2 3 1", "2 1"],
        "answer": ["second", "first"],
    }


def test_a_model_reward_is_the_score_at_the_last_visible_token():
    params = tiny.SCALAR.init(jax.random.key(0))
    got = rewards.from_model(tiny.SCALAR, params)(ROLLOUT)
    values = tiny.SCALAR.apply(params, ROLLOUT.tokens, ROLLOUT.mask)
    np.testing.assert_allclose(got, [values[0, 4], values[1, 3]], rtol=1e-5)
    hidden = ROLLOUT._replace(mask=ROLLOUT.mask.at[0, 3:].set(False))
    np.testing.assert_allclose(
        rewards.from_model(tiny.SCALAR, params)(hidden)[0], values[0, 2], rtol=1e-4
    )


def test_weighted_sum():
    total = rewards.weighted_sum([(lambda r: [1, 2], 2.0), (lambda r: [0.5, -1.0], -1.0)])
    np.testing.assert_allclose(total(ROLLOUT), [1.5, 5.0])  # 2*1 - .5, 2*2 + 1


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [("mean", [2.0, 3.0]), ("min", [1.0, 3.0]), ("uncertainty", [2.0 - 0.5 * 1.0, 3.0])],
)
def test_ensembles(rule, wanted):
    """Members score (1, 3) and (3, 3): means 2 and 3, population variances 1 and 0."""
    members = [lambda r: [1.0, 3.0], lambda r: [3.0, 3.0]]
    got = rewards.ensemble(members, rule=rule, penalty=0.5)(ROLLOUT)
    np.testing.assert_allclose(got, wanted)


def test_an_unknown_ensemble_rule_is_an_error():
    with pytest.raises(ValueError, match="'median': choose one of mean, min, uncertainty"):
        rewards.ensemble([], rule="median")
