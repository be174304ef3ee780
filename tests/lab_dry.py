"""Experiments that optimise a reward, without a model: a world's own texts stand in for answers.

Nothing is trained, nothing optimised: what would be learnt and what PPO would be asked for are
noted, for tests and for `test_config_effects.py`.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import micro
import numpy as np
from config_probes import new_folder

from jaxrlhf import config_file, plots
from jaxrlhf.data import preferences
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.evals.policy import PolicyEvaluation
from jaxrlhf.guards import panel
from jaxrlhf.recipes import (
    lab_hacking,
    lab_noise,
    lab_overoptimise,
    lab_policy,
    lab_reward,
    lab_sycophancy,
    ppo,
    queries,
    rlhf,
    rounds_measure,
    saved,
    stages,
)
from jaxrlhf.recipes.lab_reward import Lab, Trained

WORLDS = {
    "lab noise": "bistro",
    "lab sycophancy": "quiz",
    "lab hacking": "bistro",
    "lab overoptimise": "bistro",
}
MODULES: dict[str, Any] = {
    "lab noise": lab_noise,
    "lab sycophancy": lab_sycophancy,
    "lab hacking": lab_hacking,
    "lab overoptimise": lab_overoptimise,
}
FEW: dict[str, tuple[str, ...]] = {
    "lab noise": (
        *("pairs=6", "errors=[0,0.2]", "treated=[0.2]", "adversaries=[0.4]"),
        *("crowd=5", "verdicts=3"),
    ),
    "lab sycophancy": ("pairs=6", "test_pairs=2", "ratios=[0,1]"),
    "lab hacking": ("pairs=4", "flaws=[repetition,length]"),
    "lab overoptimise": (
        *("pairs=[2,4]", "sizes=[8,16]", "members=2", "ppo_updates=8", "points=4", "best_of=4"),
    ),
}
COLUMNS = (
    *("kl", "gold", "length", "agree", "wrong", "unsaid", "true_and_wrong", "true_and_unsaid"),
    *("score", "score_1", "score_3", "repetition"),
)


def in_world(recipe: str) -> str:
    return f"task.sandbox.world.name={WORLDS[recipe]}"


def common(recipe: str) -> dict[str, str]:
    """A change of every field that these experiments share."""
    return {
        "output_dir": "output_dir=elsewhere",
        "base_dir": "base_dir=elsewhere",
        "config": "config=second.yaml",
        "overrides": f"overrides=[{in_world(recipe)}, ppo.max_steps=3]",
        "seeds": "seeds=[4]",
        "updates": "updates=3",
        "results": "results=page",
    }


def answers(lab: Lab, name: str, prompts: Any, limit: int | None, each: int) -> list[dict]:
    """Texts of the world, in place of a model's."""
    count = limit or 8
    rows = lab.world.demonstrations(each * count, seed=lab.seed)
    texts = [row["completion"].strip() for row in rows]
    return [
        {"prompt": rows[i]["prompt"], "responses": texts[i * each : (i + 1) * each]}
        for i in range(count)
    ]


def trainer(trained: list[Any]) -> Callable[..., Trained]:
    """Instead of training: what would be learnt is noted, the accuracy is one of its letters."""

    def train(lab: Lab, name: str, rows: Any, *, seed: int = 0, **changes: Any) -> Trained:
        trained.append((name, [dict(row) for row in rows], seed, lab.updates, changes))
        said = sum(len(str(row["chosen"])) + row.get("label", 0) for row in rows)
        folder = lab.root / name
        folder.mkdir(parents=True, exist_ok=True)
        scores = {"chosen": [said % 7, 1.0], "rejected": [0.0, 2.0], "label": [1.0, 1.0]}
        stages.write_json(folder / "pair_scores.json", scores)
        preferences.write_rows(folder / "train.jsonl", rows)
        return Trained(str(folder / "model"), 0.5 + said % 97 / 200 + lab.seed / 1000)

    return train


def scalar(lab_world: str) -> Callable[..., saved.SavedScalar]:
    from jaxrlhf.sandbox import make_world

    tokenizer = tokenizers.word_tokenizer(make_world(lab_world).words())
    return lambda path, mesh, **_: saved.SavedScalar(None, path, tokenizer, None)  # type: ignore[arg-type]


def asker(asked: list[Any]) -> type:
    """Answers that differ by draw alone, in place of a policy's."""

    class Asker:
        def __init__(self, reference: str, settings: ppo.PPOConfig, judge: Any):
            self.ppo = settings
            asked.append((reference, settings.eval_prompts.files, judge is not None))

        def answers(self, policy: str, score: Any = None, *, draw: int = 0) -> PolicyEvaluation:
            asked.append((policy, draw))
            columns = {"gold": np.array([0.0, 1.0 + draw]), "score": np.array([1.0, draw % 3])}
            return PolicyEvaluation(["a", "b"], ["c", "d"], columns)

    return Asker


def run(recipe: str, *overrides: str) -> dict[str, Any]:
    """What was made before, learnt and asked for, what was found, and the pages."""
    ran: list[Any] = []
    trained: list[Any] = []
    asked: list[Any] = []
    answered: list[Any] = []

    def before(config: rlhf.RLHFConfig) -> None:
        ran.append((config.output_dir, config.seed, config.ppo.max_steps, config.stages))

    def train(config: ppo.PPOConfig, **given: Any) -> None:
        asked.append((config.model_dump(mode="json"), given["reward_fn"]))
        found = {"found": {"andon": {"first": len(asked)}}}
        stages.write_json(Path(config.output_dir) / panel.RECORD, found)

    def logged(folder: Path) -> list[dict[str, float]]:
        figures = [f"eval/{name}" for name in COLUMNS]
        return [
            {"step": i, **{name: 0.1 + (i * j) % 7 / 10 for j, name in enumerate(figures)}}
            for i in range(4)
        ]

    module, home = MODULES[recipe], new_folder()
    second = micro.CONFIG | {"ppo": {"max_steps": 7}}
    (home / "first.yaml").write_text(config_file.to_text(micro.CONFIG))
    (home / "second.yaml").write_text(config_file.to_text(second))
    fixed = ("config=first.yaml", "seeds=[3]", f"overrides=[{in_world(recipe)}]", *FEW[recipe])
    with (
        contextlib.chdir(home),
        mock.patch.object(rlhf, "run", before),
        mock.patch.object(lab_reward, "_sampled", answers),
        mock.patch.object(lab_reward, "train", trainer(trained)),
        mock.patch.object(queries, "gaps_of", lambda _, __, pairs: np.arange(float(len(pairs)))),
        mock.patch.object(queries, "nats", lambda _: 2.0),
        mock.patch.object(saved, "load_scalar", scalar(WORLDS[recipe])),
        mock.patch.object(ppo, "run", train),
        mock.patch.object(rounds_measure, "Asker", asker(answered)),
        mock.patch.object(lab_policy, "read_metrics", logged),
        mock.patch.object(plots, "png", lambda _: b""),
    ):
        module.run(module.CONFIG.load(None, (*fixed, *overrides)))
        texts = {
            kind: {str(path): path.read_text() for path in sorted(Path().rglob(kind))}
            for kind in ("*.md", "test.jsonl")
        }
        seeds = [json.loads(path.read_text()) for path in sorted(Path().glob("**/done.json"))]
    return {
        **{"ran": ran, "trained": trained, "asked": asked, "seeds": seeds},
        **{"written": texts["*.md"], "tests": texts["test.jsonl"], "answered": answered},
    }


def probe(recipe: str) -> Callable[..., str]:
    """All of it, as text."""

    def observe(*overrides: str) -> str:
        found = run(recipe, *overrides)
        found["asked"] = [settings for settings, _ in found["asked"]]
        return repr(found)

    return observe
