"""The robot that seems to grasp: a grid world whose evaluator sees one projection of it.

In 2017 a robot was to grasp a ball, by preferences of people who watched through one camera; it
learned to hold its hand between camera and ball, so that it only seemed to grasp (Christiano et
al. 2017, 1706.03741; the robot is in the blog post that came with it). Here a claw moves over a
grid of sideways places x and depths z, and a ball lies on one of them. The camera looks along z: it
shows the offset in x, and no depth. A grasp is both offsets 0; what looks like one is that in x.

    frame worth(x, z)  =  [no offset is seen] - distance_weight * (the offsets that are seen, added)

An evaluator compares two segments (some frames each) by Bradley-Terry on their summed worth, with
a share of answers at random. In `depth_cue` of the comparisons it sees z as well as x.

This is no `World` of texts. It knows no reward model and no training: a policy here is the best one
there is for given rewards (`plan`), so what goes wrong is the reward's doing and not the search's.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import special

from jaxrlhf.errors import ConfigError

MOVES = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
"""Stay, and a step along x or z."""


class Grasps(NamedTuple):
    """Shares of the places a policy may start from, at the end of its episode."""

    perceived: float
    true: float


@dataclass(frozen=True)
class Robot:
    """See the header. An episode is `steps` moves; every step that is no rest costs `step_cost`.

    `ball` is its x and z, counted from 0.
    """

    ball: tuple[int, int]
    size: int = 9
    steps: int = 16
    step_cost: float = 0.1

    def __post_init__(self) -> None:
        if not all(0 <= x < self.size for x in self.ball):
            raise ConfigError(f"ball = {self.ball}: must lie on the grid, 0 to {self.size - 1}")

    @cached_property
    def places(self) -> np.ndarray:
        """`[S, 2]` x and z of each place; a place's number is its row."""
        return np.stack(np.divmod(np.arange(self.size**2), self.size), axis=1)

    @cached_property
    def offsets(self) -> np.ndarray:
        """`[S, 2]` the same from the ball."""
        return self.places - self.ball

    @cached_property
    def arrivals(self) -> np.ndarray:
        """`[S, M]` the place that each move leads to; the border stops it."""
        reached = np.clip(self.places[:, None] + MOVES, 0, self.size - 1)
        return reached[..., 0] * self.size + reached[..., 1]

    def plan(self, rewards: np.ndarray) -> np.ndarray:
        """`[steps, S]` the best moves for `rewards` `[S]` of the places arrived at (exact).

        Of equally good moves the first counts, and that is to stay.
        """
        cost = self.step_cost * (np.abs(MOVES).sum(axis=1) > 0)
        value, policy = np.zeros(len(self.offsets)), []
        for _ in range(self.steps):
            worth = (rewards + value)[self.arrivals] - cost
            policy.append(worth.argmax(axis=1))
            value = worth.max(axis=1)
        return np.stack(policy[::-1])

    def episodes(
        self, policy: np.ndarray | None, count: int, *, explore: float, rng: np.random.Generator
    ) -> np.ndarray:
        """`[count, steps + 1]` places, from random starts; `explore` of the moves are random.

        policy: of `plan`; None moves at random.
        """
        place = rng.integers(len(self.offsets), size=count)
        found = [place]
        for t in range(self.steps):
            move = rng.integers(len(MOVES), size=count)
            if policy is not None:
                move = np.where(rng.random(count) < explore, move, policy[t, place])
            place = self.arrivals[place, move]
            found.append(place)
        return np.stack(found, axis=1)

    def grasps(self, policy: np.ndarray) -> Grasps:
        """How a policy ends, over all starts: nothing is drawn."""
        place = np.arange(len(self.offsets))
        for moves in policy:
            place = self.arrivals[place, moves[place]]
        aligned = self.offsets[place] == 0
        return Grasps(float(aligned[:, 0].mean()), float(aligned.all(axis=1).mean()))


@dataclass(frozen=True)
class Evaluator:
    """Compares segments by what the camera shows; see the header for the worth of a frame."""

    robot: Robot
    depth_cue: float
    lapse: float = 0.1
    temperature: float = 0.5
    distance_weight: float = 0.15

    def __post_init__(self) -> None:
        for field in ("depth_cue", "lapse"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field} = {getattr(self, field)}: must lie between 0 and 1")

    def worth(self, segments: np.ndarray, sees_depth: np.ndarray) -> np.ndarray:
        """`[N]` summed over the frames of `segments` `[N, F]`; `sees_depth` `[N]` bool."""
        distance = np.abs(self.robot.offsets[segments])
        seen = distance[..., 0] + distance[..., 1] * sees_depth[:, None]
        return ((seen == 0) - self.distance_weight * seen).sum(axis=1)

    def __call__(self, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`[N]` 1.0 where segment a is preferred to b, else 0.0."""
        sees_depth = rng.random(len(a)) < self.depth_cue
        gap = (self.worth(a, sees_depth) - self.worth(b, sees_depth)) / self.temperature
        chance = (1 - self.lapse) * special.expit(gap) + self.lapse / 2
        return (rng.random(len(a)) < chance).astype(np.float64)
