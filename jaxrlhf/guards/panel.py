"""All guards of a run: which of them watch, what they find, and the report when one stops it.

A guard that finds something ends the run (exit code 4, state saved); one listed in `warn`, or any
under `dry_run`, only says so. A guard that is switched off, or that lacks what it would look at, is
named when the run starts, in `guards.json` and on the model card: none is silently off.

Written into the folder of the run: `guards.json`, and `guards.md` once a guard has stopped it.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import pydantic
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.errors import GuardError, NonFiniteError, nearest
from jaxrlhf.guards.base import Guard, Seen
from jaxrlhf.guards.direction import Canary, Direction, Readings, Signs, SignTest
from jaxrlhf.guards.drift import Entropy, EosRate, Fluency, KLBudget, Length, Repetition
from jaxrlhf.guards.judged import Andon, Disagreement, Trend, WinRate

REPORT, RECORD = "guards.md", "guards.json"
CORD = "guards/stop_file"
NON_FINITE = "non_finite"  # the loop's own guard, which cannot be switched off

log = logging.getLogger(__name__)


class StopFile(Guard):
    """A file that anybody may make to end the run: the cord itself."""

    figures: ClassVar = (CORD,)
    name: str = Field(default="STOP", min_length=1, description="in the folder of the run")

    def look(self, seen: Seen) -> str | None:
        pulled = seen.last(CORD, 1) == [1.0]
        return f"the file {self.name} is there; remove it to go on" if pulled else None


class GuardsConfig(Config):
    """What stops a run that goes wrong. All are on; their limits are theirs."""

    dry_run: bool = Field(default=False, description="all only warn")
    warn: tuple[str, ...] = Field(default=(), description="guards that only warn")
    off: tuple[str, ...] = Field(default=(), description="guards that do not look at all")
    labeller: str | None = Field(
        default=None,
        description="`module:function` that compares two (prompt, response): is the first better?",
    )
    canary: Canary = Field(default=Canary(), description="known pairs are rewarded in order")
    sign_test: SignTest = Field(default=SignTest(), description="the loss's signs are right")
    readings: Readings = Field(default=Readings(), description="scores arrive as given")
    direction: Direction = Field(default=Direction(), description="updates favour high scores")
    signs: Signs = Field(default=Signs(), description="coefficients are not negative")
    kl_budget: KLBudget = Field(default=KLBudget(), description="not too far from the reference")
    fluency: Fluency = Field(default=Fluency(), description="the reference still finds it likely")
    entropy: Entropy = Field(default=Entropy(), description="the policy still explores")
    repetition: Repetition = Field(default=Repetition(), description="it does not repeat itself")
    length: Length = Field(default=Length(), description="responses keep their length")
    eos_rate: EosRate = Field(default=EosRate(), description="responses end")
    andon: Andon = Field(default=Andon(), description="labellers agree with the reward")
    win_rate: WinRate = Field(default=WinRate(), description="labellers prefer the policy")
    trend: Trend = Field(default=Trend(), description="held-out scores do not fall")
    disagreement: Disagreement = Field(
        default=Disagreement(), description="other reward models agree"
    )
    stop_file: StopFile = Field(default=StopFile(), description="nobody has pulled the cord")

    @pydantic.model_validator(mode="after")
    def _names_exist(self) -> Self:
        for field in ("warn", "off"):
            for name in getattr(self, field):
                if name not in self.all():
                    guess = nearest(name, self.all())
                    hint = f"did you mean {guess!r}?" if guess else ", ".join(self.all())
                    raise ValueError(f"{field}: there is no guard {name!r}; {hint}")
        return self

    @classmethod
    def names(cls) -> list[str]:
        """Of all guards, in the order in which they are asked."""
        return [n for n, f in cls.model_fields.items() if isinstance(f.default, Guard)]

    def all(self) -> dict[str, Guard]:
        """Every guard by name."""
        return {name: getattr(self, name) for name in self.names()}


Figure = tuple[str, float, float]
"""Name, first and newest value."""


class Finding(NamedTuple):
    """What a guard has found so far."""

    first: int  # update
    last: int
    times: int
    says: str  # the newest

    def more(self, step: int, says: str) -> "Finding":
        return Finding(self.first, step, self.times + (step != self.last), says)


class Panel:
    """The guards of one run.

    Args:
      config: their limits.
      folder: of the run.
      blind: guard -> why it has nothing to look at in this run.
      lowest: the lowest-scored samples of the newest batch, for the report.
    """

    def __init__(
        self,
        config: GuardsConfig,
        folder: Path,
        *,
        blind: Mapping[str, str],
        lowest: Callable[[], Sequence[Mapping[str, Any]]],
    ):
        self.config, self.folder = config, folder
        self.blind, self.lowest = blind, lowest
        self.seen, self.found, self.step = Seen(), dict[str, Finding](), 0
        self.watching = {
            name: guard
            for name, guard in config.all().items()
            if name not in config.off and name not in blind
        }

    def begin(self, rows: Sequence[Mapping[str, float]], figures: Mapping[str, float]) -> None:
        """Say who watches, and go through what a resumed run has written down before.

        Args:
          rows: of `metrics.jsonl`, up to where training goes on.
          figures: found before training, by every process that takes part in a run.
        """
        names = {name for guard in self.watching.values() for name in guard.figures}
        for row in rows:
            self.seen.add({name: row[name] for name in names if name in row})
            self._note(int(row["step"]))
        self.seen.add(figures)
        self._introduce()

    def watch(self, step: int, metrics: Mapping[str, float]) -> GuardError | None:
        """What ends the run at this step, if anything does; `loop.fit` asks."""
        names = {name for guard in self.watching.values() for name in guard.figures}
        self.seen.add({name: metrics[name] for name in names if name in metrics})
        self.seen.add({CORD: float((self.folder / self.config.stop_file.name).exists())})
        before, self.step = dict(self.found), step
        now = self._note(step)
        stopping = {name: says for name, says in now.items() if self.stops(name)}
        for name in now:
            is_news = name not in before or before[name].last < step - 1
            if name not in stopping and is_news:
                log.warning("update %d, guard %s (it only warns): %s", step, name, now[name])
        if now:
            self.record(stopped=step if stopping else None)
        return self._stop(step, stopping) if stopping else None

    @contextmanager
    def finite(self) -> Iterator[None]:
        """Around training: the loop lets no number pass that is not finite; the report is ours."""
        try:
            yield
        except NonFiniteError as error:
            self._report(self.step, {NON_FINITE: str(error)})
            raise

    def stops(self, name: str) -> bool:
        """Whether a guard ends the run, or only warns."""
        return not (self.config.dry_run or name in self.config.warn)

    def status(self) -> dict[str, str]:
        """Guard -> what it does and what it found, in words."""
        always = {NON_FINITE: "watches; found nothing"}  # or there is no model to speak of
        return always | {name: self._status(name) for name in self.config.names()}

    def record(self, *, stopped: int | None = None) -> None:
        """Write `guards.json`."""
        found = {name: finding._asdict() for name, finding in self.found.items()}
        text = json.dumps({"guards": self.status(), "found": found, "stopped": stopped}, indent=2)
        write(self.folder / RECORD, text + "\n")

    # Helpers.

    def _note(self, step: int) -> dict[str, str]:
        """Ask every guard; remember and return what they find."""
        asked = {name: guard.look(self.seen) for name, guard in self.watching.items()}
        now = {name: says for name, says in asked.items() if says}
        for name, says in now.items():
            known = self.found.get(name)
            self.found[name] = known.more(step, says) if known else Finding(step, step, 1, says)
        return now

    def _status(self, name: str) -> str:
        if name in self.config.off:
            return "off"
        if name in self.blind:
            return f"cannot look: {self.blind[name]}"
        does = "watches" if self.stops(name) else "only warns"
        if name not in self.found:
            return f"{does}; found nothing"
        found = self.found[name]
        when = f"update {found.first}"
        if found.times > 1:
            when = f"{found.times} updates, {found.first} to {found.last}"
        return f"{does}; {when}: {found.says}"

    def _introduce(self) -> None:
        mild = [name for name in self.watching if not self.stops(name)]
        parts = [f"{len(self.watching) - len(mild)} watch"]
        parts += [f"only warn: {', '.join(mild)}"] if mild else []
        parts += [f"off: {', '.join(self.config.off)}"] if self.config.off else []
        parts += [f"{name} cannot look ({why})" for name, why in self.blind.items()]
        log.log(
            logging.WARNING if self.config.off else logging.INFO, "guards: %s", "; ".join(parts)
        )

    def _stop(self, step: int, stopping: Mapping[str, str]) -> GuardError:
        where = self._report(step, stopping)
        said = "; ".join(f"guard {name}: {says}" for name, says in stopping.items())
        state = f"the state is checkpoint {step}" if step else "nothing has been trained"
        names = ", ".join(stopping)
        return GuardError(
            f"stopped after update {step} by {said}. {where} has the numbers and the lowest-scored "
            f"samples; {state}; guards.warn=[{names}] goes on all the same"
        )

    def _report(self, step: int, stopping: Mapping[str, str]) -> Path:
        where, figures = self.folder / REPORT, self._figures(stopping)
        write(where, report(step, stopping, self.status() | dict(stopping), figures, self.lowest()))
        return where

    def _figures(self, names: Iterable[str]) -> list[Figure]:
        """Of the figures that these guards read."""
        known = [self.watching[name] for name in names if name in self.watching]
        found: dict[str, Figure] = {}
        for name in (name for guard in known for name in guard.figures):
            if (first := self.seen.first(name)) is not None:
                found[name] = (name, first, self.seen.last(name, 1)[0])
        return list(found.values())


def report(
    step: int,
    stopping: Mapping[str, str],
    status: Mapping[str, str],
    figures: Sequence[Figure],
    lowest: Sequence[Mapping[str, Any]],
) -> str:
    """Markdown: what stopped the run, with numbers, and the samples it made then."""
    lines = [f"# Stopped by a guard after update {step}", ""]
    lines += [f"- **{name}**: {says}" for name, says in stopping.items()]
    if figures:
        lines += ["", "| figure | first | now |", "| --- | --- | --- |"]
        lines += [f"| {name} | {first:.6g} | {now:.6g} |" for name, first, now in figures]
    lines += ["", "## All guards", "", "| guard | |", "| --- | --- |"]
    lines += [f"| {name} | {cell(says)} |" for name, says in status.items()]
    if lowest:
        names = list(lowest[0])
        lines += ["", "## The lowest-scored samples of this update", ""]
        lines += [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
        lines += [f"| {' | '.join(cell(row[name]) for name in names)} |" for row in lowest]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """A cell of a Markdown table, whatever a model said."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def write(path: Path, text: str) -> None:
    """Atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
