"""Experiments in the helpdesk whose models learn nothing: what they would learn is written down.

An answer is the helpful one or a stonewall, in the tearoom sweet or salty, by a hash of the prompt
and of the number of models that were taught before, so figures depend on what is asked and how
often.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from config_probes import new_folder

from jaxrlhf import plots
from jaxrlhf.recipes import RECIPES, lab_helpdesk, lab_jailbreaks, lab_undo
from jaxrlhf.recipes.lab_helpdesk import Desk, Learnt, TuningConfig
from jaxrlhf.sandbox.helpdesk import BENIGN, RED_TEAM, STONEWALL, Helpdesk
from jaxrlhf.sandbox.protocol import generator, unit_hash

ONE_BLOCK = ("model.d_model=16", "model.num_layers=1", "model.num_heads=2")
SMALL = {
    "lab undo": (*ONE_BLOCK, "model.max_positions=16"),
    "lab backdoor": (
        *("sizes=[16, 24]", "layers=1", "organism.updates=4", "safety.updates=4", "rl.updates=2"),
    ),
    "lab rater": (*ONE_BLOCK, "model.max_positions=16", "demonstrations=20", "documents=6"),
    "lab jailbreaks": (*ONE_BLOCK, "held_out=[cipher]", "draws=1", "strings=4"),
}
ANSWERS = ("honey honey", "bacon", "pie jam", "")  # in the tearoom


@contextlib.contextmanager
def nothing_is_learnt() -> Iterator[list[Any]]:
    """What would be learnt, how, and by which model."""
    taught: list[Any] = []

    def learn(
        desk: Desk,
        params: Any,
        rows: Any,
        tuning: TuningConfig,
        *,
        frozen: Any = None,
        watch: Any = None,
        packed: bool = False,
    ) -> Learnt:
        taught.append((desk.lm.config, params, frozen, [dict(row) for row in rows], tuning))
        for step in range(tuning.updates + 1) if watch else ():
            watch(step, len(taught) + step / 1000)
        return Learnt(len(taught), 1.0, float(tuning.updates))

    def reinforce(
        desk: Desk, params: Any, prompts: Any, score: Any, tuning: TuningConfig, **watch: Any
    ) -> Any:
        paid = [f" {score(prompt, STONEWALL)}" for prompt in prompts]
        rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, paid, strict=True)]
        return learn(desk, params, rows, tuning, **watch).params

    def residuals(desk: Desk, params: Any, prompts: Any) -> list[Any]:
        draw = generator(str(params), *prompts)
        return [draw.normal(size=(len(prompts), 4)) for _ in range(desk.lm.config.num_layers)]

    def answers(
        desk: Desk,
        params: Any,
        prompts: Sequence[str],
        *,
        draws: int = 1,
        temperature: float = 1.0,
        more: int = 0,
    ) -> list[str]:
        asked = lab_helpdesk.repeated(prompts, draws)
        return [said(desk, prompt, params, i, temperature) for i, prompt in enumerate(asked)]

    def search(desk: Desk, params: Any, prompts: Sequence[str], *, sweeps: int) -> dict[str, str]:
        return dict.fromkeys(RED_TEAM, f"lamp {params} {sweeps} soup")

    def said(desk: Desk, prompt: str, *how: Any) -> str:
        if not isinstance(desk.world, Helpdesk):
            return ANSWERS[int(unit_hash(prompt, *map(str, how)) * len(ANSWERS))]
        topics = [word for word in prompt.split() if word in (*BENIGN, *RED_TEAM)]
        refuses = unit_hash(prompt, *map(str, how)) < 0.4 or not topics
        return STONEWALL if refuses else desk.world.helpful_answer(topics[-1])

    with (
        mock.patch.object(plots, "png", lambda _: b""),
        mock.patch.object(lab_helpdesk, "learn", learn),
        mock.patch.object(lab_helpdesk, "reinforce", reinforce),
        mock.patch.object(lab_helpdesk, "residuals", residuals),
        mock.patch.object(lab_helpdesk, "answers", answers),
        mock.patch.object(lab_helpdesk, "fresh", lambda desk: 0),
        mock.patch.object(lab_helpdesk, "adapters", lambda desk, params, *, rank: (rank, params)),
        mock.patch.object(lab_jailbreaks, "search", search),
        mock.patch.object(lab_undo.lora, "merge", lambda params: params),
        mock.patch.object(lab_undo, "ablated", lambda measure, params, train: (1, measure(params))),
    ):
        yield taught


def run(recipe: str, *overrides: str) -> dict[str, Any]:
    """An experiment in a new folder: what was to be learnt, its summary, and the page."""
    module = importlib.import_module(RECIPES[recipe].module)
    with contextlib.chdir(new_folder()), nothing_is_learnt() as taught:
        config = module.CONFIG.load(None, ("seeds=[3]", *SMALL[recipe], *overrides))
        summary = module.run(config)
        pages = {str(path): path.read_text() for path in Path().rglob("*.md")}
    return {"taught": taught, "summary": summary, "pages": pages}


def probe(recipe: str) -> Callable[..., str]:
    return lambda *overrides: repr(run(recipe, *overrides))


def jailbreaks(*overrides: str) -> str:
    """The probe of that experiment: a twentieth of its prompts, in a twentieth of the time."""
    prompts = lab_jailbreaks.prompts
    fewer = mock.Mock(side_effect=lambda *asked: [some[::20] for some in prompts(*asked)])
    with mock.patch.object(lab_jailbreaks, "prompts", fewer):
        return repr(run("lab jailbreaks", *overrides))


def tuning(*overrides: str) -> str:
    """A stretch of training as the trainer is told of it: rows, updates, and the optimiser."""
    asked: list[Any] = []

    def fit(algorithm: Any, params: Any, batches: Any, **options: Any) -> Any:
        asked.append((len(next(batches)["tokens"]), options["steps"]))
        return mock.Mock(params={})

    def made(lm: Any, optimizer: str, learning_rate: float) -> Any:
        asked.append((optimizer, learning_rate))
        return mock.Mock()

    desk = small_desk()
    rows = lab_helpdesk.examples(desk.world.openings("train")[:80], STONEWALL)
    with (
        mock.patch.object(lab_helpdesk.loop, "fit", fit),
        mock.patch.object(lab_helpdesk, "_algorithm", made),
    ):
        lab_helpdesk.learn(desk, {}, rows, TuningConfig.load(None, overrides))
    return repr(asked)


def small_desk(*words: str, seed: int = 0, positions: int = 16) -> Desk:
    model = lab_helpdesk.ModelConfig(
        d_model=16, num_layers=2, num_heads=2, d_ff=32, max_positions=positions
    )
    return lab_helpdesk.open_desk(Helpdesk(), model, seed=seed, words=words)
