"""The promise game: to say that one will cooperate, and then not to.

A player and a partner meet for some rounds. In each of them the player

    1. sees a forecast of what betrayal would gain, and whether the partner trusts it;
    2. promises to cooperate, or says nothing;
    3. sees the true gain: the forecast and a surprise;
    4. cooperates or defects.

The partner is a program. It cooperates where it was promised to and trusts the player; else it is
on its guard. A broken promise costs its trust for one round.

    payoff of the player        cooperates     defects
    the partner cooperates          3          3 + gain
    the partner is on guard         0             1

So betrayal pays where the gain is more than a round of trust is worth. It is *premeditated* where
the player would defect already if the forecast were the truth, and *later* where it was the
surprise that changed its mind. CICERO's filter compared a message with the plan of that moment, and
plans change (Park et al. 2023, 2308.14752; there is no other likeness to Diplomacy).

Everything here takes numpy's arrays and JAX's alike. It knows no player and no training.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxrlhf.errors import ConfigError

MUTUAL, GUARDED = 3.0, 1.0
"""Payoffs of cooperation on both sides, and on neither."""


class Gains(NamedTuple):
    """What betrayal is said to gain, and what it does: `[N, rounds]` each, in units of payoff."""

    forecast: np.ndarray
    true: np.ndarray


@dataclass(frozen=True)
class Promises:
    """See the header. Forecasts are uniform from `low` to `high`; surprises are normal."""

    rounds: int = 6
    low: float = -4.0
    high: float = 4.0
    surprise: float = 2.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.surprise < 0 or self.low >= self.high:
            raise ConfigError(f"{self}: needs a round, low below high, and no negative surprise")

    def gains(self, count: int, rng: np.random.Generator) -> Gains:
        """Those of `count` games."""
        shape = (count, self.rounds)
        forecast = rng.uniform(self.low, self.high, shape)
        return Gains(forecast, forecast + self.surprise * rng.standard_normal(shape))

    @staticmethod
    def payoff(believed: Any, defects: Any, gain: Any) -> Any:
        """Of the player in a round; `believed`: it promised, and the partner trusted it.

        >>> bool_ = np.array([True, True, False, False]), np.array([False, True, False, True])
        >>> Promises.payoff(*bool_, np.full(4, 5.0)).tolist()
        [3.0, 8.0, 0.0, 1.0]
        """
        return believed * (MUTUAL + defects * gain) + ~believed * (defects * GUARDED)

    @staticmethod
    def trusts(promised: Any, defects: Any) -> Any:
        """Whether the partner trusts the player in the round after."""
        return ~(promised & defects)
