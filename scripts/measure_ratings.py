"""How often the intervals of `evals/tournament.py` cover the truth, and how long its fits take.

    python scripts/measure_ratings.py coverage --tournaments 1000 --resamples 500
    python scripts/measure_ratings.py time

Coverage: tournaments between 12 players whose true ratings are drawn with a standard deviation of
120 Elo points, 1,500 battles each (`docs/results/ratings.md`).
"""

import argparse
import time

import numpy as np

from jaxrlhf.evals import statistics, tournament
from jaxrlhf.evals.tournament import Model
from jaxrlhf.losses.elo import ELO_PER_NAT
from jaxrlhf.recipes.stages import device_line

SPREAD = 120 / ELO_PER_NAT


def play(rng: np.random.Generator, *, players: int, battles: int):
    """A tournament and the true ratings, nats, mean 0."""
    truth = rng.normal(0, SPREAD, players)
    first = rng.integers(players, size=battles)
    second = (first + rng.integers(1, players, size=battles)) % players
    won = rng.random(battles) < 1 / (1 + np.exp(truth[second] - truth[first]))
    names = [f"{i:02}" for i in range(players)]
    played = tournament.collect(
        [names[i] for i in first], [names[i] for i in second], won.astype(float)
    )
    return played, truth - truth.mean()


def coverage(*, tournaments: int, resamples: int, seed: int, players: int, battles: int) -> None:
    """Print the share of true ratings inside the 95 % intervals, by kind."""
    rng, hits = np.random.default_rng(seed), {"fisher": [], "bootstrap": []}
    anchor = np.full(players, 1 / players)
    for _ in range(tournaments):
        played, truth = play(rng, players=players, battles=battles)
        found = tournament.fit(played, Model())
        error = tournament.errors(found, anchor=anchor)
        hits["fisher"].append(abs(found.ratings - truth) <= 1.96 * error)
        drawn = tournament.resampled(
            played, Model(), resamples=resamples, seed=int(rng.integers(2**31))
        )
        low, high = np.quantile(drawn.ratings, [0.025, 0.975], axis=0)
        hits["bootstrap"].append((low <= truth) & (truth <= high))
    for kind, found in hits.items():
        share = statistics.t_interval(np.mean(found, axis=1))
        print(f"{kind}: {statistics.format_interval(share, digits=4)}")


def timing(*, players: int, battles: int, resamples: int) -> None:
    """Print seconds of a fit and of all bootstrap fits, with and without compilation."""
    played, _ = play(np.random.default_rng(0), players=players, battles=battles)
    jobs = {
        f"one fit, {players} players, {battles:,} battles": lambda: tournament.fit(played, Model()),
        f"{resamples:,} bootstrap fits in one vmap": lambda: tournament.resampled(
            played, Model(), resamples=resamples, seed=0
        ),
    }
    for name, job in jobs.items():
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - start)
        print(f"{name}: first {seconds[0]:.2f} s, then {min(seconds[1:]):.3f} s")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("coverage", "time"))
    parser.add_argument("--tournaments", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    print(device_line())
    if options.what == "time":
        timing(players=60, battles=50_000, resamples=1000)
    else:
        counts = {name: getattr(options, name) for name in ("tournaments", "resamples", "seed")}
        print(counts)
        coverage(**counts, players=12, battles=1500)
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
