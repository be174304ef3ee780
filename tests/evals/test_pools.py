"""Answers of a prompt: the same ratings one prompt at a time, and what a prior does."""

import numpy as np
import pytest
from scipy import special

from jaxrlhf.evals import pools, tournament
from jaxrlhf.evals.pools import Pool
from jaxrlhf.evals.tournament import Model


def random_pool(answers: int, count: int, seed: int) -> tuple[Pool, np.ndarray]:
    rng = np.random.default_rng(seed)
    utility = rng.normal(size=answers)
    first = rng.integers(answers, size=count)
    second = (first + rng.integers(1, answers, size=count)) % answers
    won = rng.random(count) < special.expit(utility[first] - utility[second])
    return Pool(answers, first.tolist(), second.tolist(), won.astype(float).tolist()), utility


def test_many_prompts_are_each_by_itself(monkeypatch):
    made = [random_pool(n, 12, seed)[0] for seed, n in enumerate((3, 5, 2, 5))]
    found = pools.rate(made, prior=0.7)
    for pool, rated in zip(made, found, strict=True):
        names = [f"{i}" for i in range(pool.answers)]
        battles = tournament.collect(
            [names[i] for i in pool.first], [names[i] for i in pool.second], pool.outcomes
        )
        alone = tournament.fit(battles, Model(prior=0.7))
        share = np.full(pool.answers, 1 / pool.answers)
        assert rated.ratings == pytest.approx(alone.ratings, abs=1e-9)
        assert rated.errors == pytest.approx(tournament.errors(alone, anchor=share), abs=1e-9)
    monkeypatch.setattr(pools, "ROWS_AT_ONCE", 10)  # of 10 rows: one prompt at a time
    for one, other in zip(pools.rate(made, prior=0.7), found, strict=True):
        assert one.ratings == pytest.approx(other.ratings, abs=1e-12)


def test_more_comparisons_say_more():
    """Correlation with the truth, 120 answers: systems.md has .51 at 2 each and .92 at 32."""
    found = []
    for each in (2, 8, 32):
        pool, utility = random_pool(120, 60 * each, seed=each)
        found.append(np.corrcoef(pools.rate([pool], prior=1.0)[0].ratings, utility)[0, 1])
    assert found == sorted(found) and found[0] < 0.75 and found[2] > 0.85


def test_the_errors_are_those_of_the_prior_where_nothing_was_compared():
    # Two answers never compared with the third, prior precision 4: nothing but the prior, SD 1/2
    # around 0, and √(2/3)/2 around the mean of three.
    pool = Pool(3, [0], [1], [0.5])
    rated = pools.rate([pool], prior=4.0)[0]
    assert rated.ratings == pytest.approx(np.zeros(3), abs=1e-12)
    assert rated.errors[2] == pytest.approx(np.sqrt(2 / 3) / 2, rel=0.06)
    assert rated.errors[0] < rated.errors[2]


def test_there_is_no_rating_without_a_prior():
    with pytest.raises(ValueError, match="above 0"):
        pools.rate([Pool(2, [0], [1], [1.0])], prior=0.0)


def test_errors_of_differences():
    """Two answers tied once, a third never compared; prior precision 4."""
    # r0 - r1: prior precision 2, the game adds p(1 - p) = 1/4. r0 + r1: precision 2, untouched.
    # r0 alone has (1/2.25 + 1/2)/4, r2 has 1/4, and the two are independent.
    rated = pools.rate([Pool(3, [0], [1], [0.5]), Pool(2, [0], [1], [0.5])], prior=4.0)
    apart = np.sqrt((1 / 2.25 + 1 / 2) / 4 + 1 / 4)
    near = np.sqrt(1 / 2.25)
    wanted = [[0, near, apart], [near, 0, apart], [apart, apart, 0]]
    assert rated[0].gap_errors == pytest.approx(np.array(wanted), abs=1e-9)
    assert rated[1].gap_errors == pytest.approx(np.array([[0, near], [near, 0]]), abs=1e-9)
