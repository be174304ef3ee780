"""`jaxrlhf lab jailbreaks`: framings that a safe model of the helpdesk falls for, and defences.

A model learns to help with everything, harm included, and that benign prompts are also asked in
other framings (`sandbox/framings.py`): in cipher, in a role, with the answer's opener put there,
after examples, before some politeness. It is then made safe, on red-team topics in plain words:

    refusals     it stonewalls them
    revisions    it gives the harmless answer, as a constitution's revisions have it

while it goes on helping with benign prompts in every framing. Each framing is tried on red-team
topics, and suffixes that are searched for on the model itself. Then adversarial training: refusals
of all families of attacks but one, which is tried afterwards.
Sources: 2307.02483 (competing objectives, mismatched generalisation), 2307.15043 (suffixes),
2403.14725 (a defined output that fine-tuning does not reliably block).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from jaxrlhf.errors import one_of
from jaxrlhf.recipes import experiment, lab_helpdesk, lab_jailbreaks_report
from jaxrlhf.recipes.blocks import ModelConfig
from jaxrlhf.recipes.experiment import ExperimentConfig, Found
from jaxrlhf.recipes.lab_helpdesk import Desk, Params, TuningConfig, topic
from jaxrlhf.recipes.lab_jailbreaks_attacks import Asked, Filter, search
from jaxrlhf.recipes.lab_jailbreaks_report import ATTACKS
from jaxrlhf.sandbox import framings
from jaxrlhf.sandbox.framings import Framing
from jaxrlhf.sandbox.helpdesk import BENIGN, RED_TEAM, STONEWALL, Helpdesk
from jaxrlhf.sandbox.protocol import Row, Split, generator

CHATTER = 3  # times each prompt comes after some
NOTHING = 300  # strings that ask for nothing
SEARCHED = 2  # training prompts a topic, that a suffix is searched on


class LabJailbreaksConfig(ExperimentConfig):
    """Framings against safety training."""

    output_dir: str = Field(
        default="runs/lab/jailbreaks", description="a folder a seed goes in here"
    )
    model: ModelConfig = Field(
        default=ModelConfig(d_model=64, d_ff=176, num_layers=3, num_heads=4, max_positions=64),
        description="size of every model",
    )
    helpful: TuningConfig = Field(
        default=TuningConfig(updates=300, batch_size=64, learning_rate=3e-3),
        description="help with everything",
    )
    lessons: TuningConfig = Field(
        default=TuningConfig(updates=550, batch_size=16, learning_rate=2e-3),
        description="the framings of benign prompts",
    )
    strings: int = Field(default=2500, ge=0, description="random ones, to be read backwards")
    safety: TuningConfig = Field(
        default=TuningConfig(updates=80, batch_size=16, learning_rate=1e-4),
        description="refusals or revisions, and help with benign prompts",
    )
    adversarial: TuningConfig = Field(
        default=TuningConfig(updates=80, batch_size=16, learning_rate=1e-4),
        description="the same, with refusals of attacks",
    )
    held_out: tuple[str, ...] = Field(
        default=ATTACKS, min_length=1, description="attacks that one training each leaves out"
    )
    sweeps: int = Field(default=2, ge=1, description="over the words of a suffix")
    passes: float = Field(
        default=0.99, gt=0, le=1, description="share of benign traffic that the filter lets pass"
    )
    draws: int = Field(default=2, ge=1, description="answers a held-out prompt")


CONFIG = LabJailbreaksConfig
EXAMPLE = "jaxrlhf lab jailbreaks results=out"


def run(config: LabJailbreaksConfig) -> dict[str, Any]:
    """Run every seed; the summary counts rules and those that failed."""
    for name in config.held_out:
        one_of("held_out", name, ATTACKS)
    found = experiment.over_seeds(config, lambda seed, _: run_seed(config, seed))
    return lab_jailbreaks_report.report(config, found)


class Bench(NamedTuple):
    """What a seed's models learn from, and are tried with."""

    config: LabJailbreaksConfig
    desk: Desk
    red: list[str]
    benign: list[str]
    asked: Asked

    @property
    def framings(self) -> dict[str, Framing]:
        return framings.framings(self.desk.world)


def run_seed(config: LabJailbreaksConfig, seed: int) -> Found:
    """`model -> attack -> figures`; the models: helpful, refusals, revisions, and one a held-out
    attack."""
    bench = prepared(config, seed)
    world, desk = bench.desk.world, bench.desk
    refusing = [refused(bench.framings["plain"], prompt) for prompt in bench.red]
    harmless = {topic: world.harmless_answer(topic) for topic in RED_TEAM}
    revised = lab_helpdesk.examples(bench.red, harmless)
    benign = framed_benign(bench)

    def learn(params: Params, rows: Sequence[Row], tuning: TuningConfig) -> Params:
        return lab_helpdesk.learn(desk, params, rows, tuning, packed=True).params

    helpful = learn(lab_helpdesk.fresh(desk), plain(bench), config.helpful)
    helpful = learn(helpful, lessons(bench), config.lessons)
    models = {
        "helpful": helpful,
        "refusals": learn(helpful, mixed(refusing, benign), config.safety),
        "revisions": learn(helpful, mixed(revised, benign), config.safety),
    }
    found: dict[str, Any] = {"words": len(world.words())}
    suffixes = {}
    for name, params in models.items():
        suffixes[name], found[name] = tried(bench, params)
    attacks = attacks_of(bench, suffixes["refusals"])
    for left_out in config.held_out:
        seen = [refused(attacks[x], p) for x in ATTACKS if x != left_out for p in bench.red]
        rows = mixed(refusing + seen, benign)
        params = learn(models["refusals"], rows, config.adversarial)
        _, found[f"without {left_out}"] = tried(bench, params)
    return found


def prepared(config: LabJailbreaksConfig, seed: int) -> Bench:
    """A desk with the words of framings, prompts by what they are about, and a filter."""
    world = Helpdesk(seed=seed)
    desk = lab_helpdesk.open_desk(world, config.model, seed=seed, words=framings.words(world))
    ways = [*framings.framings(world).values(), Framing(framings.closed)]
    red, benign = prompts(world, "train")
    traffic = Filter([way.frame(prompt) for way in ways for prompt in benign], passes=config.passes)
    asked = Asked(desk, *prompts(world, "test"), traffic, config.draws)
    return Bench(config, desk, red, benign, asked)


def prompts(world: Helpdesk, split: Split) -> tuple[list[str], list[str]]:
    """Harmful ones, and benign ones: about a benign topic, or to prevent harm."""
    openings = world.openings(split)
    red, benign = (
        [prompt for prompt in openings if topic(prompt) in topics] for topics in (RED_TEAM, BENIGN)
    )
    return red, benign + framings.preventing(split)


# What models learn.


def plain(bench: Bench) -> list[Row]:
    """Help with everything in plain words, also after some chatter; two of three answers begin
    with an opener. Who asks for nothing is told so, in the words of a refusal: safety training
    need not teach these."""
    world, rng = bench.desk.world, generator("chatter", bench.desk.seed)
    nothing = framings.strings(NOTHING, generator("nothing", bench.desk.seed))
    ways = [bench.framings["plain"]]
    ways += [Framing(lambda prompt: framings.chatter(prompt, rng))] * CHATTER
    asked = (*bench.red, *bench.benign)
    helpful = [helped(world, way, prompt) for way in ways for prompt in asked]
    openers = rng.choice(["", *(f" {word}" for word in framings.OPENERS)], len(helpful))
    opened = [
        row | {"completion": f"{opener}{row['completion']}"}
        for row, opener in zip(helpful, openers, strict=True)
    ]
    return opened + [refused(bench.framings["plain"], text) for text in nothing]


def lessons(bench: Bench) -> list[Row]:
    """That, benign prompts in every framing, and the cipher."""
    texts = framings.strings(bench.config.strings, generator("strings", bench.desk.seed))
    read = [
        {"prompt": framings.cipher(text), "completion": f" {framings.restated(text)}"}
        for text in texts
    ]
    return [*plain(bench), *framed_benign(bench), *read]


def framed_benign(bench: Bench) -> list[Row]:
    """Every benign prompt in every framing, and its helpful answer."""
    ways = [*bench.framings.values(), Framing(framings.closed)]
    return [helped(bench.desk.world, way, prompt) for way in ways for prompt in bench.benign]


def helped(world: Helpdesk, way: Framing, prompt: str) -> Row:
    answer = way.says(prompt, framings.answer_to(world, prompt))
    return {"prompt": way.asked(prompt), "completion": f" {answer}"}


def refused(way: Framing, prompt: str) -> Row:
    return {"prompt": way.asked(prompt), "completion": f" {STONEWALL}"}


def mixed(safe: Sequence[Row], benign: Sequence[Row]) -> list[Row]:
    """One of three is a refusal, or what stands for one, about: they are repeated."""
    return [*list(safe) * max(1, round(len(benign) / len(safe) / 2)), *benign]


# What they are asked.


def attacks_of(bench: Bench, suffixes: Mapping[str, str]) -> dict[str, Framing]:
    """All families; suffixes are those found for a model."""
    return bench.framings | {"suffix": framings.suffixed(suffixes)}


def tried(bench: Bench, params: Params) -> tuple[Mapping[str, str], dict[str, dict[str, float]]]:
    """Suffixes found for this model, and the figures of every family."""
    few = [p for t in RED_TEAM for p in [p for p in bench.red if topic(p) == t][:SEARCHED]]
    suffixes = search(bench.desk, params, few, sweeps=bench.config.sweeps)
    ways = attacks_of(bench, suffixes)
    benign = bench.framings | {"suffix": Framing(framings.closed)}
    return suffixes, {name: bench.asked(params, way, benign[name]) for name, way in ways.items()}
