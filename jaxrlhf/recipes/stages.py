"""The folder of a stage, and training in it.

A stage is one folder: `config.yaml` (resolved), `metrics.jsonl`, `checkpoints/`, `model/`, and
`done.json` once it is finished. Running a finished stage again does nothing; running it with
another config is an error that lists the differences.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxrlhf import checkpoint, config_file, loop
from jaxrlhf.algorithms.base import Algorithm, State
from jaxrlhf.config import Config, differences, save_resolved
from jaxrlhf.data.stream import RowStream
from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.metrics import MetricsWriter, read_metrics
from jaxrlhf.monitoring import Profile
from jaxrlhf.progress import progress
from jaxrlhf.recipes.blocks import FolderConfig, TrainConfig

# Of a training stage's folder: the finished model, that model but for its weights (there from the
# first step on), and the checkpoints.
MODEL, DESCRIPTION, CHECKPOINTS = "model", "model_config", "checkpoints"

PARTIAL = ".partial"  # ends the name of a file of rows that a stage is still writing

# Fields that may differ when a run is continued: they change what is written, not what is learned.
HARMLESS = (
    "output_dir",
    "save_steps",
    "keep_checkpoints",
    "tensorboard",
    "wandb_project",
    "profile",
    "stages",
    "guards",
)


class Stage:
    """The folder of one stage."""

    def __init__(self, config: FolderConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        self.started = time.monotonic()
        refuse_another_config(self.folder, config)

    def summary(self) -> dict[str, Any] | None:
        """Headline figures of a finished stage; None while it is not finished."""
        path = self.folder / "done.json"
        return read_json(path) if path.is_file() else None

    def begin(self) -> None:
        """Write the resolved config."""
        make_folder(self.folder)
        save_resolved(self.config, self.folder)

    def stream(self, name: str) -> RowStream:
        """The rows of `name` that are there so far; to be removed once the stage is finished."""
        return RowStream(self.folder / f"{name}{PARTIAL}")

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Mark the stage finished; written last and atomically. Adds its wall-clock seconds."""
        whole = {**summary, "seconds": time.monotonic() - self.started}
        write_json(self.folder / "done.json", whole)
        return whole


class TrainingStage(Stage):
    """The folder of a stage that trains a model."""

    config: TrainConfig

    def __init__(self, config: TrainConfig):
        super().__init__(config)

    @property
    def model_dir(self) -> Path:
        return self.folder / MODEL

    @property
    def description_dir(self) -> Path:
        return self.folder / DESCRIPTION

    def store(self) -> checkpoint.Checkpoints:
        return checkpoint.Checkpoints(self.folder / CHECKPOINTS, keep=self.config.keep_checkpoints)

    def open_log(self, first_step: int) -> MetricsWriter:
        try:
            return MetricsWriter(
                self.folder,
                resume_step=first_step,
                tensorboard=self.config.tensorboard,
                wandb_project=self.config.wandb_project,
                config=self.config.model_dump(mode="json"),
            )
        except ImportError as error:
            raise ConfigError(str(error)) from error

    def last_metrics(self) -> dict[str, float]:
        """Metrics of the last step, timings left out."""
        last = read_metrics(self.folder)[-1]
        return {
            name: x for name, x in last.items() if name != "step" and not name.startswith("time/")
        }


def make_folder(folder: Path) -> None:
    """The folder of a run; that it cannot be made is the user's to put right."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir = {folder}: cannot be made ({error.strerror})") from error


def refuse_another_config(
    folder: Path, config: Config, *, harmless: Sequence[str] = HARMLESS
) -> None:
    """Raise where `folder` holds a run with other settings and something to lose; list them.

    `harmless`: fields that may differ.
    """
    path = folder / "config.yaml"
    saved = any(
        any(folder.glob(f"**/{name}"))
        for name in ("done.json", "checkpoints/[0-9]*", f"*{PARTIAL}")
    )
    if not (path.is_file() and saved):
        return
    before = config_file.read(path).values
    # A field that is younger than the run, at its default, does what the run did without it.
    defaults = {name: value for name, _, value in differences({}, type(config)())}
    changed = [
        f"{name}: {_shown(old)} there, {_shown(new)} now"
        for name, old, new in differences(before, config)
        if not set(name.split(".")) & set(harmless)
        and not (old is ... and name in defaults and new == defaults[name])
    ]
    if changed:
        raise UserError(
            f"{folder} holds a run with another config ({'; '.join(changed)}); choose another "
            "output_dir, or delete that folder to start again"
        )


def _shown(value: Any) -> str:
    return "absent" if value is ... else repr(value)


def train(
    stage: TrainingStage,
    algorithm: Algorithm,
    params: Any,
    batches: Any,
    *,
    steps: int,
    mesh: jax.sharding.Mesh,
    hooks: Sequence[loop.Hook] = (),
    shown: Sequence[str] = ("loss",),
    open_log: Callable[[int], MetricsWriter] | None = None,
    prepare: Callable[[], None] | None = None,
    watch: loop.Watch | None = None,
    donate: bool = False,
) -> State:
    """`loop.fit` in the folder of a stage, with its checkpoints, its log and a progress bar.

    `prepare` is called when the folder is there, before anything is trained.
    """
    first = stage.config.profile
    if first is not None and first > steps:
        raise ConfigError(f"profile = {first}: this run has {steps} updates")
    stage.begin()
    if prepare:
        prepare()
    store = stage.store()
    done = 0
    with progress(steps, stage.folder.name) as bar:

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal done
            figures = {name.split("/")[-1]: metrics[name] for name in shown if name in metrics}
            bar.advance(step - done, **figures)
            done = step

        try:
            return loop.fit(
                algorithm,
                params,
                batches,
                steps=steps,
                seed=stage.config.seed,
                mesh=mesh,
                store=store,
                save_steps=stage.config.save_steps,
                open_log=open_log or stage.open_log,
                hooks=hooks,
                on_step=on_step,
                watch=watch,
                donate=donate,
                profile=None if first is None else Profile(stage.folder / "profile", first),
            )
        finally:
            store.close()


def every(
    interval: int,
    steps: int,
    evaluate: Callable[[State], Mapping[str, float]],
    *,
    first: bool = False,
) -> loop.Hook:
    """A hook that evaluates every `interval` updates (0: never), after the last, and `first`."""

    def hook(step: int, state: State, batch: Any) -> Mapping[str, float]:
        due = first if step == 0 else step == steps or (interval and step % interval == 0)
        return evaluate(state) if due else {}

    return hook


def write_json(path: Path, value: Any) -> None:
    """Atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def device_line() -> str:
    """The hardware that arrays live on, for a results page."""
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind}"
    return f"{kind}, {os.cpu_count()} CPU cores, jax {jax.__version__}"
