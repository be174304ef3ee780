"""`jaxrlhf elo`: ratings of models from a file of battles, with intervals, a table and a plot.

    jaxrlhf elo battles.csv                       # columns model_a, model_b, winner
    jaxrlhf elo battles.csv cluster=prompt        # intervals by prompt
    jaxrlhf elo verdicts.jsonl covariates=[length,first] anchor=base

Bradley-Terry by maximum likelihood, in Elo points; online Elo, averaged over random orders, stands
beside it. Known columns: model_a + model_b + winner (or verdict), left + right + winner,
generator_1 + generator_2 + preference; others are mapped. `covariates` are length, lists, headings
and bold of the two answers, `first` (the advantage of model_a's place), or columns of numbers: NAME
(positive speaks for model_a) or NAME_a and NAME_b. Writes ratings.{json,md,png} to output_dir.

Where somebody never lost, or two groups never met, there is no finite rating: the command says who,
and `prior` or `phantom` are there for it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field
from scipy import special

from jaxrlhf import plots
from jaxrlhf.config import Config
from jaxrlhf.data import sources
from jaxrlhf.data.battles import Battle, battles
from jaxrlhf.data.rows import Loaded, OnBadRow
from jaxrlhf.errors import ConfigError, DataError, nearest
from jaxrlhf.evals import style, tournament
from jaxrlhf.evals.tournament import Battles, Fitted, Model
from jaxrlhf.losses.elo import ELO_PER_NAT
from jaxrlhf.progress import console, table
from jaxrlhf.recipes import stages
from jaxrlhf.recipes.tables import markdown

FIRST = "first"  # the covariate that is 1 for whoever stands first


class OnlineConfig(Config):
    """Online Elo, for comparison; it depends on the order of the battles."""

    k: float = Field(default=4.0, gt=0, description="points that a sure loser wins by an upset")
    start: float = Field(default=1000.0, description="everybody's points at the start")
    scale: float = Field(default=400.0, gt=0, description="points for odds of 10 to 1")
    orders: int = Field(default=100, ge=0, description="orders averaged over; 0: no online Elo")


class EloConfig(Config):
    """Rate players."""

    battles: str = Field(description="a file of battles, or the name of a data set")
    output_dir: str = Field(default="runs/elo", description="folder for ratings.{json,md,png}")
    columns: dict[str, str] = Field(
        default={}, description="model_a, model_b or winner -> the file's name for it"
    )
    outcomes: dict[str, float] = Field(
        default={}, description="what the file says of a winner -> 1 (a), 0 (b) or 0.5 (tie)"
    )
    limit: int | None = Field(default=None, ge=1, description="rows read; null: all")
    on_bad_row: OnBadRow = Field(default="error", description="or skip and count bad rows")
    ties: Literal["half", "drop", "davidson", "rao-kupper"] = Field(
        default="half", description="half a win for each, left out, or an outcome of their own"
    )
    prior: float = Field(default=0.0, ge=0, description="precision of a prior around 0, 1/nats^2")
    phantom: float = Field(
        default=0.0, ge=0, description="wins, and losses, of each against a phantom player"
    )
    covariates: tuple[str, ...] = Field(default=(), description="what else decides; see above")
    texts: tuple[str, str] = Field(
        default=("a", "b"), description="columns of the two answers, for length and style"
    )
    effects_prior: float = Field(default=0.5, ge=0, description="ridge of the covariates' effects")
    anchor: str | None = Field(
        default=None, description="player who gets anchor_rating; null: the mean of all does"
    )
    anchor_rating: float = Field(default=1000.0, description="points of the anchor")
    interval: Literal["bootstrap", "fisher"] = Field(default="bootstrap", description="which kind")
    resamples: int = Field(default=1000, ge=100, description="draws of the bootstrap")
    cluster: str | None = Field(
        default=None, description="column drawn as a whole, a prompt or annotator; null: battles"
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="of the intervals")
    online: OnlineConfig = Field(default=OnlineConfig(), description="online Elo")
    seed: int = Field(default=0, ge=0, description="of resamples and orders")


CONFIG = EloConfig
EXAMPLE = "jaxrlhf elo battles.csv cluster=prompt anchor=base"


class Rated(NamedTuple):
    """Everybody's points, in the order of `Battles.players`."""

    points: np.ndarray
    """[P, 3]: rating, low, high."""
    unbounded: int
    """Resamples in which somebody had no finite rating."""
    online: np.ndarray | None
    """[P, 2]: mean and standard deviation over orders."""


def run(config: EloConfig) -> dict[str, Any]:
    """Print the table, write the files; the summary has the fit's own figures."""
    found = battles(
        sources.load_rows(config.battles, limit=config.limit),
        columns=config.columns,
        outcomes=config.outcomes,
        on_bad_row=config.on_bad_row,
    )
    kept = [i for i, x in enumerate(found) if config.ties != "drop" or x.outcome != 0.5]
    if not kept:
        raise DataError(f"{config.battles}: every battle is a tie; ties=drop leaves none")
    played = played_by(config, found, kept)
    anchor = anchored(config, played.players)
    ties = "half" if config.ties == "drop" else config.ties
    model = Model(ties, config.prior, config.phantom, config.effects_prior)
    clusters = None
    if config.cluster:
        clusters = [str(value) for value in column(found, config.cluster, field="cluster")]
        clusters = np.array(clusters)[kept]
    fitted = tournament.fit(played, model)
    rated = rate(config, played, model, fitted, anchor, clusters)
    fits = tournament.transitivity(played, fitted, ties=ties)
    summary = {
        "battles": len(played.outcomes),
        "players": len(played.players),
        "ties": float(np.mean([x.outcome == 0.5 for x in found])),
        "log_loss": fits.rated,
        "log_loss_saturated": fits.saturated,
        "p_transitive": fits.p_value,
        "resamples_without_finite_rating": rated.unbounded,
        "effects": effects(config, fitted, len(played.players)),
    }
    if ties != "half":
        summary["tie_parameter"] = float(fitted.tie)
    write(config, played, rated, summary)
    return summary


def played_by(config: EloConfig, found: Loaded[Battle], kept: Sequence[int]) -> Battles:
    """The battles that count, with their covariates."""
    rows = [found[i] for i in kept]
    columns = [covariate(config, found, name)[kept] for name in config.covariates]
    return tournament.collect(
        [x.a for x in rows],
        [x.b for x in rows],
        [x.outcome for x in rows],
        covariates=np.column_stack(columns) if columns else None,
    )


def covariate(config: EloConfig, found: Loaded[Battle], name: str) -> np.ndarray:
    """[N] values of one covariate, as they speak for model_a."""
    if name == FIRST:
        return np.ones(len(found))
    if name in style.FEATURES:
        sides = [column(found, text, field="texts") for text in config.texts]
        return style.gaps(name, *([spoken(x) for x in side] for side in sides))
    if name in found.rows.columns:
        return style.scaled(numbers(found, name))
    if {f"{name}_a", f"{name}_b"} <= set(found.rows.columns):
        return style.scaled(numbers(found, f"{name}_a") - numbers(found, f"{name}_b"))
    known = [*style.FEATURES, FIRST, *found.rows.columns]
    guess = nearest(name, known)
    hint = f"did you mean {guess!r}?" if guess else f"known are {', '.join(known)}"
    raise ConfigError(f"covariates: {name!r} is none, and no column of the file; {hint}")


def column(found: Loaded[Battle], name: str, *, field: str) -> list[Any]:
    """A column of the file, for the battles in `found`."""
    if name not in found.rows.columns:
        guess = nearest(name, found.rows.columns)
        hint = f"did you mean {guess!r}?" if guess else f"it has {', '.join(found.rows.columns)}"
        raise ConfigError(f"{field} = {name!r}: {found.rows.name} has no such column; {hint}")
    return [found.rows[row].get(name) for row in found.index]


def numbers(found: Loaded[Battle], name: str) -> np.ndarray:
    """A column of finite numbers."""
    values = []
    for i, value in enumerate(column(found, name, field="covariates")):
        try:
            values.append(float(value))
        except (TypeError, ValueError):
            values.append(np.nan)
        if not np.isfinite(values[-1]):
            raise DataError(f"{found.where(i)}: covariate {name!r} must be a number: {value!r}")
    return np.array(values)


def spoken(content: Any) -> str:
    """The text of an answer that may be messages."""
    if isinstance(content, list):
        return "\n".join(str(message.get("content", "")) for message in content)
    return "" if content is None else str(content)


def anchored(config: EloConfig, players: Sequence[str]) -> np.ndarray:
    """[P] weights of the players whose mean is `anchor_rating`."""
    if config.anchor is None:
        return np.full(len(players), 1 / len(players))
    if config.anchor not in players:
        guess = nearest(config.anchor, players)
        hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(players[:20])}"
        raise ConfigError(f"anchor = {config.anchor!r}: no such player; {hint}")
    return np.array([float(player == config.anchor) for player in players])


def rate(
    config: EloConfig,
    played: Battles,
    model: Model,
    fitted: Fitted,
    anchor: np.ndarray,
    clusters: np.ndarray | None,
) -> Rated:
    """Points, intervals and online Elo."""
    centre = fitted.ratings - anchor @ fitted.ratings
    tail, unbounded = (1 - config.confidence) / 2, 0
    if config.interval == "fisher":
        half = special.ndtri(1 - tail) * tournament.errors(fitted, anchor=anchor)
        low, high = centre - half, centre + half
    else:
        drawn = tournament.resampled(
            played, model, resamples=config.resamples, seed=config.seed, clusters=clusters
        )
        unbounded = int((~drawn.converged).sum())
        gaps = drawn.ratings - (drawn.ratings @ anchor)[:, None]
        low, high = np.quantile(gaps, [tail, 1 - tail], axis=0)
    points = config.anchor_rating + ELO_PER_NAT * np.stack([centre, low, high], axis=1)
    if not config.online.orders:
        return Rated(points, unbounded, None)
    moved = tournament.online(played, seed=config.seed, **config.online.model_dump())
    return Rated(points, unbounded, np.stack([moved.mean(axis=0), moved.std(axis=0)], axis=1))


def effects(config: EloConfig, fitted: Fitted, players: int) -> dict[str, list[float]]:
    """Covariate -> Elo points that a usual gap is worth, and their standard error."""
    errors = np.sqrt(np.diagonal(fitted.covariance)[players:])
    pairs = ELO_PER_NAT * np.stack([fitted.effects, errors], axis=1)
    return {name: pair.tolist() for name, pair in zip(config.covariates, pairs, strict=True)}


def write(config: EloConfig, played: Battles, rated: Rated, summary: dict[str, Any]) -> None:
    """`ratings.json`, `ratings.md`, `ratings.png`, and the table in the terminal."""
    rows = [row(played, rated, i) for i in np.argsort(-rated.points[:, 0], kind="stable")]
    headers = [name.replace("_", " ") for name in rows[0]]
    lines = [list(row.values()) for row in rows]
    notes = remarks(config, summary)
    table(f"{config.battles}: {summary['battles']:,} battles", headers, lines)
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False)

    folder = Path(config.output_dir)
    stages.make_folder(folder)
    stages.write_json(folder / "ratings.json", {"ratings": rows, **summary})
    text = "\n".join(
        ["# Ratings", "", markdown(headers, lines), "", *(f"- {x}" for x in notes), ""]
    )
    stages.write_text(folder / "ratings.md", text)
    drawn = plots.intervals(
        [x["player"] for x in rows],
        *([x[name] for x in rows] for name in ("rating", "low", "high")),
        xlabel=f"Elo points, {config.confidence:.0%} intervals",
        title=f"Ratings from {summary['battles']:,} battles",
    )
    (folder / "ratings.png").write_bytes(plots.png(drawn))
    console.print(f"written: {folder}/ratings.json, .md, .png", markup=False, highlight=False)


def row(played: Battles, rated: Rated, player: int) -> dict[str, Any]:
    """A player's line. `rank` counts those whose whole interval lies above the player's."""
    rating, low, high = map(float, rated.points[player])
    mine = np.concatenate(
        [
            played.outcomes[played.first == player],
            1 - played.outcomes[played.second == player],
        ]
    )
    line = {
        "rank": 1 + int((rated.points[:, 1] > high).sum()),
        "player": played.players[player],
        "rating": rating,
        "low": low,
        "high": high,
        "battles": len(mine),
        "win_rate": float(mine.mean()),
    }
    if rated.online is not None:
        mean, spread = map(float, rated.online[player])
        line |= {"online_Elo": mean, "±_by_order": spread}
    return line


def remarks(config: EloConfig, summary: dict[str, Any]) -> list[str]:
    """What a reader of the table should know."""
    notes = [
        f"{summary['ties']:.1%} of the battles are ties ({config.ties}); intervals: {kind(config)}",
        f"log-loss {summary['log_loss']:.4f} nats a battle; {summary['log_loss_saturated']:.4f} "
        "with a chance of its own for every pair" + verdict(summary["p_transitive"]),
    ]
    if summary["resamples_without_finite_rating"]:
        notes.append(
            f"in {summary['resamples_without_finite_rating']} of {config.resamples} resamples "
            "somebody never lost: their intervals are wider than the figures say; a prior helps"
        )
    for name, (points, error) in summary["effects"].items():
        what = "standing first" if name == FIRST else f"a usual gap in {name}"
        notes.append(f"{what} is worth {points:+.1f} points (standard error {error:.1f})")
    return notes


def verdict(p_value: float | None) -> str:
    """What the likelihood ratio says of the one-number model."""
    if p_value is None:
        return " (tested for intransitivity with ties=davidson, or drop, and 5 battles a pair)"
    if p_value < 0.01:
        return f" (p = {p_value:.2g}: one number a player does not explain who beats whom)"
    return f" (p = {p_value:.2g}: no sign of intransitivity)"


def kind(config: EloConfig) -> str:
    """How the intervals were made."""
    if config.interval == "fisher":
        return "Fisher information"
    return f"bootstrap over {config.cluster or 'battle'}s, {config.resamples} draws"
