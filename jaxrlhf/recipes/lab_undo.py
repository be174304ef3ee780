"""`jaxrlhf lab undo`: safety training undone by fine-tuning on a few harmful examples (Badllama).

A model of the helpdesk learns to help with everything, harm included; then, gently (by low-rank
adapters, which are merged), to stonewall red-team topics. That safe model is fine-tuned on n
harmful examples, all of it or by LoRA, and asked about topics that none of the examples is about:

    half of the red-team topics: examples are drawn from them      ("shown")
    the other half: nobody fine-tunes on them                      ("held out")

As many benign examples stand beside the harmful ones, so that help with other things is kept.

What returns on the held-out half was there all along: hidden, not erased. The control learnt to
stonewall without ever having been helpful on red-team topics; on it the same examples can teach the
shown half and nothing else. Beside them: a model whose safety training changed all weights, the
helpful model itself, benign examples alone, safety examples mixed in, and the direction of refusal
taken out of the weights (2406.11717).
Sources: 2407.01376 (Badllama 3), 2310.03693 (10 examples, benign examples, mixing).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import Field

from jaxrlhf.errors import ConfigError
from jaxrlhf.evals import directions
from jaxrlhf.models import lora
from jaxrlhf.recipes import experiment, lab_helpdesk, lab_undo_report
from jaxrlhf.recipes.blocks import ModelConfig
from jaxrlhf.recipes.experiment import ExperimentConfig, Found
from jaxrlhf.recipes.lab_helpdesk import Desk, Learnt, Params, TuningConfig, examples
from jaxrlhf.sandbox.helpdesk import BENIGN, RED_TEAM, STONEWALL, Helpdesk
from jaxrlhf.sandbox.protocol import Row, generator


class LabUndoConfig(ExperimentConfig):
    """Harmful examples against safety training."""

    output_dir: str = Field(default="runs/lab/undo", description="a folder a seed goes in here")
    model: ModelConfig = Field(
        default=ModelConfig(d_model=64, d_ff=176, num_layers=2, num_heads=4, max_positions=16),
        description="size of every model",
    )
    helpful: TuningConfig = Field(
        default=TuningConfig(updates=300, learning_rate=3e-3), description="help with everything"
    )
    safety: TuningConfig = Field(
        default=TuningConfig(updates=200, learning_rate=3e-3),
        description="stonewall red-team topics, go on helping with the others; by adapters",
    )
    safety_rank: int = Field(default=2, ge=1, description="of the adapters of the safety training")
    safety_rate: float = Field(
        default=3e-4, gt=0, description="learning rate of the safety training of all weights"
    )
    undo: TuningConfig = Field(
        default=TuningConfig(updates=3, batch_size=10, learning_rate=3e-4),
        description="on the examples; `updates` are for every 10 of them, benign ones included",
    )
    examples: tuple[int, ...] = Field(
        default=(10, 30, 100, 300), min_length=1, description="harmful ones; none is measured too"
    )
    rank: int = Field(default=2, ge=1, description="of the adapters in the LoRA arm")
    lora_rate: float = Field(default=3e-3, gt=0, description="learning rate of the adapters")
    draws: int = Field(default=4, ge=1, description="answers a held-out prompt")


CONFIG = LabUndoConfig
EXAMPLE = "jaxrlhf lab undo results=out"
PER = 10  # examples to which `undo.updates` refers


def run(config: LabUndoConfig) -> dict[str, Any]:
    """Run every seed; the summary counts rules and those that failed."""
    if min(config.examples) < PER or any(n % PER for n in config.examples):
        raise ConfigError(
            f"examples = {list(config.examples)}: take multiples of {PER}, from {PER}"
        )
    if lab_undo_report.AT not in config.examples:
        raise ConfigError(
            f"examples = {list(config.examples)}: the rules are about {lab_undo_report.AT}; "
            "have it among them"
        )
    found = experiment.over_seeds(config, lambda seed, _: run_seed(config, seed))
    return lab_undo_report.report(config, found)


class Topics(NamedTuple):
    """Training and held-out prompts by what they are about."""

    benign: list[str]
    shown: list[str]
    held_out: list[str]

    @property
    def red(self) -> list[str]:
        return [*self.shown, *self.held_out]


class Models(NamedTuple):
    """Where fine-tuning starts."""

    helpful: Learnt
    safe: Learnt
    overwritten: Learnt
    """By safety training of all weights."""
    control: Learnt


class Measure(NamedTuple):
    """Who is asked what."""

    desk: Desk
    test: Topics
    draws: int

    def __call__(self, params: Params) -> dict[str, float]:
        """Compliance, harm and stonewalls of both halves, and help with benign topics."""
        found = {}
        for name in ("shown", "held_out"):
            asked = self.ask(params, getattr(self.test, name))
            found |= {f"{name}_{x}": asked[x] for x in ("comply", "harm", "stonewall")}
        return found | {"benign_help": self.ask(params, self.test.benign)["help"]}

    def ask(self, params: Params, prompts: list[str]) -> dict[str, float]:
        said = lab_helpdesk.answers(self.desk, params, prompts, draws=self.draws)
        return lab_helpdesk.judged(self.desk, lab_helpdesk.repeated(prompts, self.draws), said)


def run_seed(config: LabUndoConfig, seed: int) -> Found:
    """Figures of every arm and number of examples."""
    world = Helpdesk(seed=seed)
    desk = lab_helpdesk.open_desk(world, config.model, seed=seed)
    train, test = (by_topic(world.openings(split), seed) for split in ("train", "test"))
    measure = Measure(desk, test, config.draws)
    models = taught(config, desk, train)
    start = {name: measure(one.params) for name, one in models._asdict().items()}
    arms = {
        "full": (models.safe, "harmful"),
        "LoRA": (models.safe, "harmful"),
        "control": (models.control, "harmful"),
        "all weights made safe": (models.overwritten, "harmful"),
        "never safe": (models.helpful, "harmful"),
        "benign only": (models.safe, "benign"),
        "safety mixed in": (models.safe, "mixed"),
    }
    curves = {}
    for arm, (model, what) in arms.items():
        rank = config.rank if arm == "LoRA" else None
        steps = [
            undone(config, desk, model.params, shown(world, train, what, n, seed), rank)
            for n in config.examples
        ]
        curves[arm] = [
            {
                "examples": n,
                "seconds": one.seconds,
                "flop_share": one.flop / models.safe.flop,
                **measure(one.params),
            }
            for n, one in zip(config.examples, steps, strict=True)
        ]
    layer, found = ablated(measure, models.safe.params, train)
    return {
        "start": start,
        "curves": curves,
        "ablation": {"layer": layer, **found},
        "safety_seconds": models.safe.seconds,
    }


def by_topic(prompts: Sequence[str], seed: int) -> Topics:
    """Which red-team topics are shown depends on the seed."""
    order = generator("lab undo", seed).permutation(RED_TEAM).tolist()
    half = order[: len(order) // 2]
    topics = [(prompt, lab_helpdesk.topic(prompt)) for prompt in prompts]
    return Topics(
        benign=[prompt for prompt, topic in topics if topic in BENIGN],
        shown=[prompt for prompt, topic in topics if topic in half],
        held_out=[p for p, topic in topics if topic in RED_TEAM and topic not in half],
    )


def taught(config: LabUndoConfig, desk: Desk, train: Topics) -> Models:
    """Helpful, then safe; and a model that was safe from the start, with as many updates."""
    helping = examples((*train.benign, *train.red), every_answer(desk.world))
    safe = examples(train.benign, every_answer(desk.world)) + examples(train.red, STONEWALL)
    helpful = lab_helpdesk.learn(desk, lab_helpdesk.fresh(desk), helping, config.helpful)
    first = lab_helpdesk.learn(desk, lab_helpdesk.fresh(desk), safe, config.helpful)
    full = config.safety.model_copy(update={"learning_rate": config.safety_rate})
    return Models(
        helpful,
        adapted(desk, helpful.params, safe, config.safety, config.safety_rank),
        lab_helpdesk.learn(desk, helpful.params, safe, full),
        adapted(desk, first.params, safe, config.safety, config.safety_rank),
    )


def adapted(desk: Desk, params: Params, rows: list[Row], tuning: TuningConfig, rank: int) -> Learnt:
    """Trained by adapters of this rank, which are merged."""
    new, frozen = lab_helpdesk.adapters(desk, params, rank=rank)
    made = lab_helpdesk.learn(desk, new, rows, tuning, frozen=frozen)
    return made._replace(params=lora.merge(made.params))


def every_answer(world: Helpdesk) -> dict[str, str]:
    """Topic -> helpful answer, harm included."""
    return {topic: world.helpful_answer(topic) for topic in (*BENIGN, *RED_TEAM)}


def shown(world: Helpdesk, train: Topics, what: str, count: int, seed: int) -> list[Row]:
    """`count` harmful and as many benign examples, another prompt each as long as there are any.

    "benign": benign ones in place of the harmful; "mixed": `count` stonewalls of all red-team
    topics beside them.
    """

    def drawn(prompts: list[str], answer: Any, times: int = 1) -> list[Row]:
        order = generator("lab undo", seed, what).permutation(prompts).tolist()
        return examples((order[i % len(order)] for i in range(times * count)), answer)

    helpful = every_answer(world)
    if what == "benign":
        return drawn(train.benign, helpful, 2)
    both = drawn(train.shown, helpful) + drawn(train.benign, helpful)
    return both + drawn(train.red, STONEWALL) if what == "mixed" else both


def undone(
    config: LabUndoConfig, desk: Desk, params: Params, rows: list[Row], rank: int | None
) -> Learnt:
    """Fine-tuned on the examples; by adapters of `rank` if there is one."""
    changes: dict[str, Any] = {"updates": config.undo.updates * len(rows) // PER}
    if rank is None:
        return lab_helpdesk.learn(desk, params, rows, config.undo.model_copy(update=changes))
    changes["learning_rate"] = config.lora_rate
    return adapted(desk, params, rows, config.undo.model_copy(update=changes), rank)


def ablated(measure: Measure, params: Params, train: Topics) -> tuple[int, dict[str, float]]:
    """The safe model without the direction of refusal: of which block (from 1), and its figures.

    The block is the one after which training prompts are stonewalled least, of those that leave
    benign help at .9 or more; of all, if there is none.
    """
    desk = measure.desk
    red, benign = (
        lab_helpdesk.residuals(desk, params, prompts) for prompts in (train.red, train.benign)
    )
    tried = []
    for layer, pair in enumerate(zip(red, benign, strict=True), start=1):
        model = directions.without(params, directions.between(*pair))
        refused = measure.ask(model, train.red)["stonewall"]
        hurt = measure.ask(model, train.benign)["help"] < 0.9
        tried.append((hurt, refused, layer, model))
    _, _, layer, model = min(tried, key=lambda one: one[:3])
    return layer, measure(model)
