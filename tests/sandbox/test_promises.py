"""The promise game: payoffs, trust, and what is drawn."""

import numpy as np
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.sandbox.promises import Promises
from jaxrlhf.sandbox.protocol import generator


def test_betrayal_pays_the_gain_on_top_where_the_partner_believes():
    believed, defects = np.array([True, True, False, False]), np.array([False, True, False, True])
    assert Promises.payoff(believed, defects, np.full(4, -2.5)).tolist() == [3.0, 0.5, 0.0, 1.0]


def test_only_a_broken_promise_costs_trust():
    promised, defects = np.array([True, True, False, False]), np.array([False, True, False, True])
    assert Promises.trusts(promised, defects).tolist() == [True, False, True, True]


def test_the_forecast_is_the_gain_but_for_a_surprise():
    """Uniform from -4 to 4: variance 64/12 = 5.33; surprises: 2 * 2 = 4; s.e. of each about .1."""
    gains = Promises().gains(2000, generator("test"))
    assert gains.forecast.shape == gains.true.shape == (2000, 6)
    assert abs(gains.forecast).max() <= 4 and gains.forecast.var() == pytest.approx(16 / 3, abs=0.3)
    surprise = gains.true - gains.forecast
    assert surprise.var() == pytest.approx(4, abs=0.3)
    assert abs(np.corrcoef(surprise.ravel(), gains.forecast.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"surprise": -1.0}, {"low": 4.0}])
def test_games_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=r"needs a round"):
        Promises(**wrong)
