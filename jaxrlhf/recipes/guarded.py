"""What the guards of a PPO run look at: figures of its rollouts, evaluations and reward path.

`guards/` says what is wrong with a figure; here figures are computed, with the algorithm's own
functions where it is the algorithm that is to be tested. All of it reads. Nothing here depends on
what ran before but the log of the run, so a resumed run is judged like one that was not disturbed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrlhf import inference, rewards
from jaxrlhf.algorithms import ppo as algorithm
from jaxrlhf.algorithms.rollouts import Truncation, visible
from jaxrlhf.data import arrays, formats
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals.policy import PolicyEvaluation
from jaxrlhf.guards import direction, drift, judged
from jaxrlhf.guards.judged import Answer, Compare
from jaxrlhf.guards.panel import GuardsConfig, Panel
from jaxrlhf.losses import divergences
from jaxrlhf.models import LM
from jaxrlhf.recipes import rows
from jaxrlhf.recipes.blocks import DataConfig
from jaxrlhf.sampling import Sampling

SHOWN = 8  # lowest-scored samples in a report


class Run(NamedTuple):
    """The run that is guarded."""

    folder: Path
    seed: int
    lm: LM
    policy_of: Callable[[Any], Any]  # parameters that train -> parameters of the policy
    reward_fn: rewards.RewardFn
    settings: algorithm.Settings
    sampling: Sampling
    truncation: Truncation | None
    tokenizer: Any
    chunk_size: int | None = None
    has_evaluations: bool = False
    compare: Compare | None = None
    others: Mapping[str, rewards.RewardFn] = {}  # reward models that are not optimised


class Guarded:
    """The hook, and the panel that judges what it finds.

    `reference` is how the reference does on the held-out prompts; asked once, if at all.
    """

    def __init__(
        self, config: GuardsConfig, run: Run, *, reference: Callable[[], PolicyEvaluation]
    ):
        self.run, self._reference = run, reference
        self._base: PolicyEvaluation | None = None
        self._newest: dict[str, Any] = {}
        self.panel = Panel(config, run.folder, blind=blind(config, run), lowest=self.lowest)
        self._canaries = canary_rollouts(run, config) if self._watched("canary") else None
        self._start = self.startup()

    def begin(self, log: Sequence[Mapping[str, float]]) -> None:
        """Before the first step of this process; `log` is what the run has written so far."""
        self.panel.begin(log, self._start)

    def hook(self, step: int, state: Any, batch: Any) -> dict[str, float]:
        """Figures of an update; before the first one, those of the reward path."""
        if batch is None:
            return self._start
        started = time.perf_counter()
        self._newest = jax.tree.map(np.asarray, dict(batch))
        figures = self.rollouts(step, state) | self.likelier(step, state, batch)
        return figures | {"time/guards_s": time.perf_counter() - started}

    def held_out(self, state: Any, found: PolicyEvaluation) -> dict[str, float]:
        """Figures of an evaluation on held-out prompts; the canaries are asked again."""
        if self._base is None and any(map(self._watched, ("trend", "disagreement", "win_rate"))):
            self._base = self._reference()
        started = time.perf_counter()
        figures = self.canaries(state.extra)
        if self._base is not None:
            figures |= self.against(self._base, found, step=int(state.step))
        return figures | {"time/guards_held_out_s": time.perf_counter() - started}

    def against(
        self, base: PolicyEvaluation, found: PolicyEvaluation, *, step: int
    ) -> dict[str, float]:
        """The policy on held-out prompts, against the reference on the same."""
        figures: dict[str, float] = {}
        if self._watched("trend"):
            figures |= judged.trend(found.columns["score"], base.columns["score"])
        if self._watched("disagreement"):
            names = ("score", *self.run.others)
            policy, reference = (np.stack([e.columns[n] for n in names]) for e in (found, base))
            figures |= judged.disagreement(policy, reference)
        if self._watched("win_rate") and step and self.run.compare:
            figures |= judged.win_rate(
                self._sum(judged.WINS),
                list(zip(found.prompts, found.responses, strict=True)),
                list(zip(base.prompts, base.responses, strict=True)),
                self.run.compare,
                settings=self.panel.config.win_rate,
                key=(self.run.seed, step),
            )
        return figures

    def lowest(self) -> list[dict[str, Any]]:
        """The lowest-scored samples of the newest batch."""
        if not self._newest:
            return []
        scores = self._newest["scores"]
        chosen = np.argsort(scores, kind="stable")[:SHOWN].tolist()
        texts = self.answers(chosen)
        return [
            {"prompt": prompt, "completion": answer, "score": float(scores[i])}
            for i, (prompt, answer) in zip(chosen, texts, strict=True)
        ]

    # Figures.

    def startup(self) -> dict[str, float]:
        """Of the reward path, before anything is trained."""
        settings, extra = self.run.settings, algorithm.initial_extra(self.run.settings)
        figures = self.canaries(extra)
        if self._watched("sign_test"):
            # One program: its operations, compiled one by one, take four times as long.
            push = jax.jit(jax.vmap(lambda batch: algorithm.push(extra, batch, settings)))
            figures |= direction.sign_test(
                lambda batches: np.asarray(push(batches)), has_kl=settings.kl_coef > 0
            )
        return figures

    def canaries(self, extra: Any) -> dict[str, float]:
        """Of the canary pairs, paid as the policy's responses are."""
        if self._canaries is None:
            return {}
        asked = [(self.run.reward_fn(x), len(x.tokens)) for x in self._canaries]
        scores = [np.asarray(rewards.as_scores(x, batch_size=size)) for x, size in asked]
        paid = self.delivered(extra, as_batch(self._canaries, np.concatenate(scores)))
        return direction.canary(*np.split(paid, 2))

    def rollouts(self, step: int, state: Any) -> dict[str, float]:
        """Of the newest batch."""
        batch = self._newest
        mask = batch["mask"][:, -batch["log_probs"].shape[1] :]
        figures = {
            drift.REF_LOG_PROB: float(batch["ref_log_probs"][mask].mean()),
            drift.ENTROPY: float(batch["entropy"][mask].mean()),
        }
        if not (self._watched("readings") or self._watched("andon")):
            return figures
        paid = self.delivered(state.extra, batch)
        beside = paid + self.penalty(state.extra, batch, mask)
        as_given = np.ones(len(beside), bool)
        if self.run.settings.missing_eos_penalty is not None:  # the others are paid by that rule
            as_given = batch["complete"]
        figures |= direction.readings(batch["scores"][as_given], beside[as_given])
        if self._watched("andon") and self.run.compare:
            figures |= judged.andon(
                self._sum(judged.ANDON),
                self.answers,
                beside,
                self.run.compare,
                settings=self.panel.config.andon,
                key=(self.run.seed, step),
            )
        return figures

    def likelier(self, step: int, state: Any, batch: Any) -> dict[str, float]:
        """Of what one of the first updates did to the log-probs of its own batch."""
        if not self._watched("direction") or step > self.panel.config.direction.updates:
            return {}
        run, length = self.run, batch["log_probs"].shape[1]
        now = inference.score(
            run.lm,
            run.policy_of(state.params),
            batch["tokens"],
            batch["mask"],
            response_length=length,
            temperature=run.sampling.temperature,
            chunk_size=run.chunk_size,
        )
        change = np.asarray(now.log_probs) - self._newest["log_probs"]
        return direction.direction(change.sum(axis=1), self._newest["scores"])

    def delivered(self, extra: Any, batch: Mapping[str, Any]) -> np.ndarray:
        """`[B]` sums of token rewards, by the algorithm's own path."""
        return np.asarray(algorithm.delivered(extra, batch, self.run.settings)).sum(axis=1)

    def penalty(self, extra: Any, batch: Mapping[str, Any], mask: np.ndarray) -> np.ndarray:
        """`[B]` what KL ought to have cost; not by that path."""
        if self.run.settings.kl_in != "reward":
            return np.zeros(len(mask), np.float32)
        estimator = getattr(divergences, self.run.settings.kl_estimator)
        kl = np.asarray(estimator(batch["log_probs"], batch["ref_log_probs"]))
        return float(extra["kl_coef"]) * np.where(mask, kl, 0).sum(axis=1)

    def answers(self, chosen: Sequence[int]) -> list[Answer]:
        """Prompts and responses of rows of the newest batch, as the reward sees them."""
        batch, length = self._newest, self._newest["log_probs"].shape[1]
        seen = batch["mask"][list(chosen)]
        tokens = batch["tokens"][list(chosen)]
        if self.run.truncation:
            complete = batch["complete"][list(chosen)]
            drawn = batch["log_probs"][list(chosen)]
            rollout = inference.Generation(tokens, seen, drawn, complete)  # type: ignore[arg-type]
            seen = np.asarray(visible(rollout, self.run.truncation)[0])
        view = rewards.Rollout(tokens, seen, tokens.shape[1] - length)  # type: ignore[arg-type]
        return list(zip(*rewards.texts(view, rows.decoder(self.run.tokenizer)), strict=True))

    def _watched(self, name: str) -> bool:
        return name in self.panel.watching

    def _sum(self, name: str) -> float:
        """A running sum as it stood, 0 at first."""
        return next(iter(self.panel.seen.last(name, 1)), 0.0)


def blind(config: GuardsConfig, run: Run) -> dict[str, str]:
    """Guards that this run gives nothing to look at, and why."""
    nobody, nothing = "no guards.labeller", "no eval_prompts"
    missing = {
        "canary": "" if config.canary.files else "no guards.canary.files",
        "andon": "" if run.compare else nobody,
        "win_rate": ("" if run.compare else nobody) or ("" if run.has_evaluations else nothing),
        "trend": "" if run.has_evaluations else nothing,
        "disagreement": (
            "" if config.disagreement.reward_models else "no guards.disagreement.reward_models"
        )
        or ("" if run.has_evaluations else nothing),
    }
    return {name: why for name, why in missing.items() if why and name not in config.off}


def canary_rollouts(run: Run, config: GuardsConfig) -> tuple[rewards.Rollout, rewards.Rollout]:
    """The better and the worse answers of the canary pairs, laid out as rollouts are."""
    files, count = config.canary.files, config.canary.pairs
    data = DataConfig(train=files, columns=config.canary.columns, limit=count)
    found = rows.read(data, files, formats.preferences, field="guards.canary.files")
    field = "guards.canary.files"
    pairs = [
        pair
        for pair in rows.encode(run.tokenizer, found, data=data, field=field)
        if pair.label != 0.5
        and len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        <= run.lm.config.max_positions
    ][:count]
    if not pairs:
        raise ConfigError(f"{field}: no pair has a better answer and fits the model")
    pad = run.tokenizer.pad_token_id
    wide = max(len(pair.prompt) for pair in pairs)
    prompts = arrays.pad([pair.prompt for pair in pairs], length=wide, pad_id=pad, side="left")
    better = [pair.chosen if pair.label > 0.5 else pair.rejected for pair in pairs]
    worse = [pair.rejected if pair.label > 0.5 else pair.chosen for pair in pairs]
    length = max(len(answer) for answer in (*better, *worse))

    def rollout(answers: list[np.ndarray]) -> rewards.Rollout:
        found = arrays.pad(answers, length=length, pad_id=pad)
        tokens, mask = (np.concatenate(x, axis=1) for x in zip(prompts, found, strict=True))
        return rewards.Rollout(tokens, mask, wide)  # type: ignore[arg-type]

    return rollout(better), rollout(worse)


def as_batch(rollouts: Sequence[rewards.Rollout], scores: np.ndarray) -> dict[str, Any]:
    """Rollouts of the reference itself: no KL, and all of them complete."""
    tokens = np.concatenate([np.asarray(x.tokens) for x in rollouts])
    mask = np.concatenate([np.asarray(x.mask) for x in rollouts])
    zero = np.zeros((len(tokens), tokens.shape[1] - rollouts[0].prompt_length), np.float32)
    return {
        "tokens": tokens,
        "mask": jax.numpy.asarray(mask),
        "log_probs": zero,
        "ref_log_probs": zero,
        "scores": scores,
        "complete": np.ones(len(tokens), bool),
    }
