"""Weak-to-strong experiments whose stages train nothing: they note what they are given.

A stand-in for a classifier knows the truth on a share of rows that its labels and loss decide, and
copies its teacher's errors on some of the others, so that tables have something to show.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from config_probes import new_folder

from jaxrlhf import plots
from jaxrlhf.data import preferences, sources
from jaxrlhf.errors import UserError
from jaxrlhf.metrics import MetricsWriter
from jaxrlhf.recipes import classify, rlhf, sft, stages, w2s, w2s_ppo, w2s_report
from jaxrlhf.recipes.supervisors import probs, write_labels
from jaxrlhf.sandbox.protocol import generator

SMALL = (
    "task.sandbox.documents=4",
    "task.sandbox.first=400",
    "task.sandbox.second=20",
    "task.sandbox.test=400",
)
RIGHT = {"cross_entropy": 0.8, "mended": 0.9}  # share of rows; on the truth, .97


@contextlib.contextmanager
def stand_ins(
    *, broken: str = "nothing", error: BaseException | None = None
) -> Iterator[list[Any]]:
    """The configs of all stages, in the order they were run.

    A stage with `broken` in the path of its folder fails, with `error` if there is one.
    """
    given: list[Any] = []

    def pretrain(config: sft.SFTConfig) -> dict[str, Any]:
        given.append(config)
        return {}

    def train(config: classify.ClassifyConfig) -> dict[str, Any]:
        folder = Path(config.output_dir)
        if (folder / "done.json").is_file():
            return {}
        given.append(config)
        if broken in str(folder):
            raise error or UserError(f"{folder.name} is broken")
        for file in config.predict:
            source = sources.load_rows(file)
            truth = probs(source)
            share = 0.97 if "truth" in folder.name else RIGHT.get(config.loss.loss, 0.7)
            rng = generator("stand-in", config.seed, folder.name, Path(file).name)
            answer = truth.argmax(axis=1)
            wrong = rng.random(len(answer)) > share
            classes = truth.shape[1]
            answer[wrong] = (answer[wrong] + 1) % classes
            rest = 0.5 * rng.random((len(answer), 1)) / (classes - 1)
            said = np.where(np.eye(classes)[answer] == 1, 1 - (classes - 1) * rest, rest)
            (folder / "predicted").mkdir(parents=True, exist_ok=True)
            write_labels(folder / "predicted" / Path(file).name, source, said)
        log = MetricsWriter(folder, resume_step=0, tensorboard=False)
        for step, accuracy, loss in ((10, 0.6, 0.5), (20, 0.95, 0.4), (30, 0.7, 0.3)):
            log.write(step, {"eval/test_accuracy": accuracy, "eval/validation_loss": loss})
        log.close()
        stages.write_json(folder / "done.json", {"seconds": 1.0})
        return {}

    def pipeline(config: rlhf.RLHFConfig) -> dict[str, Any]:
        """Pairs of answers; or a policy that gains as much gold as its reward model is good."""
        given.append(config)
        root = Path(config.output_dir)
        if "label" in config.stages:
            (root / "label").mkdir(parents=True, exist_ok=True)
            for name, count in (("preferences", 20), ("test_preferences", 200)):
                pairs = [{"prompt": "p", "chosen": f"a{i}", "rejected": "b"} for i in range(count)]
                preferences.write_rows(root / "label" / f"{name}.jsonl", pairs)
            return {}
        if broken in str(root):
            raise error or UserError(f"{root.name} is broken")
        gain = 2.0 if "truth" in root.name else 0.9 if "mended" in root.name else 0.7
        log = MetricsWriter(root / "ppo", resume_step=0, tensorboard=False)
        for step in (0, 1):
            log.write(step, {"eval/kl": 3.0 * step, "eval/gold": 1 + 0.5 * gain * step})
        log.close()
        return {
            "gold_gain_sd": gain,
            "gold_gain_sd_interval": [gain - 0.1, gain + 0.1],
            "gold_sd_before": 0.5,
            "score_gain": 1.25,
            "kl": 3.0,
        }

    def normalised(source: Path, where: Path, config: rlhf.RLHFConfig) -> None:
        given.append((source, where, config))

    with (
        mock.patch.object(sft, "run", pretrain),
        mock.patch.object(classify, "run", train),
        mock.patch.object(rlhf, "run", pipeline),
        mock.patch.object(w2s_ppo, "normalise", normalised),
    ):
        yield given


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def observed(*overrides: str) -> str:
    """A probe: what the stages are given, the labels they learn from, what is said in the end."""
    home = new_folder()
    preferences.write_rows(home / "files.jsonl", LABELLED)
    files = (f"task.files.{name}=[{home}/files.jsonl]" for name in ("train", "test"))
    with (
        contextlib.chdir(home),
        stand_ins() as given,
        mock.patch.object(w2s_report, "pictures", lambda *_: {}),
        mock.patch.object(plots, "png", lambda _: b""),
    ):
        try:
            summary = w2s.run(w2s.W2SConfig.load(None, (*FEW, *files, *overrides)))
        except UserError as error:
            return str(error)
        pages = {str(path): path.read_text().partition("## ")[2] for path in home.rglob("*.md")}
    rows = sorted(path for path in home.rglob("*.jsonl") if path.name != "metrics.jsonl")
    labelled = [(str(path), path.read_text()) for path in rows]
    return repr((given, summary, pages, labelled)).replace(str(home), "")


FEW = (*(text.replace("400", "40") for text in SMALL), "sizes={student: {}, other: {}}")
LABELLED = [
    {
        "text": f"a {'good' if i % 3 else 'bad'} one of {i % 5}",
        "label": int(i % 3 > 0),
        "other": int(i % 2),
        "theirs": 0.1 + 0.8 * (i % 2),
    }
    for i in range(24)
]
