"""Elo points: the table of the literature, and one game after another by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.losses import elo


def test_the_table():
    # 400 log10(p/(1 - p)); Bai et al. (2022, section 2.4) print the same curve.
    chance = jnp.array([0.55, 0.60, 0.64, 0.75, 0.80, 0.90])
    points = [34.86, 70.44, 99.95, 190.85, 240.82, 381.70]
    assert elo.of_probability(chance).tolist() == pytest.approx(points, abs=0.01)
    assert elo.to_probability(jnp.array(points)).tolist() == pytest.approx(
        chance.tolist(), abs=1e-4
    )


def test_the_better_one_wins_more():
    assert elo.to_probability(jnp.array(200.0)) > 0.5 > elo.to_probability(jnp.array(-200.0))


def test_there_and_back():
    gap = jnp.linspace(-3, 3, 7)
    assert elo.to_score(elo.of_score(gap)).tolist() == pytest.approx(gap.tolist(), abs=1e-6)
    assert abs(elo.ELO_PER_NAT - 400 / np.log(10)) < 1e-12


def test_two_games_by_hand():
    # Equals: the winner takes K/2 = 8. Then, 16 points ahead, 1/(1 + 10^(-16/400)) = .52301 is
    # expected, and a tie costs 16 (.52301 - .5) = .36821.
    games = jnp.array([0, 0]), jnp.array([1, 1]), jnp.array([1.0, 0.5])
    found = elo.online(*games, players=3, k=16, start=1500, scale=400)
    assert found.tolist() == pytest.approx([1507.632, 1492.368, 1500.0], abs=1e-3)


def test_the_order_decides():
    games = jnp.array([0, 0]), jnp.array([1, 1]), jnp.array([1.0, 0.0])
    one = elo.online(*games, players=2, k=32, start=0, scale=400)
    other = elo.online(*(x[::-1] for x in games), players=2, k=32, start=0, scale=400)
    assert one[0] < 0 < other[0]  # who wins last is ahead


def test_scale_and_precision():
    games = np.array([0] * 9), np.array([1] * 9), np.ones(9)
    small, large = (
        elo.online(*games, players=2, k=32, start=0, scale=scale) for scale in (100, 400)
    )
    assert small[0] < large[0]  # 400 points are odds of 10^4 to 1 at scale 100
    assert small.dtype == jnp.float32
    with jax.enable_x64(True):
        assert elo.online(*games, players=2, k=32, start=0, scale=400).dtype == jnp.float64
