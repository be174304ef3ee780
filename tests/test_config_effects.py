"""Every field of every recipe's config does something: changed, it changes what happens.

One row a field, in the tables of `field_probes/`. A field of a recipe is tried in that recipe; a
field of a group that recipes share (`optimizer`, `data`, ...) is tried once, through what reads the
group, and each recipe is shown to pass its groups on. A field without a row fails
`test_every_field_has_a_probe`.
"""

import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import cai_plans
import config_probes as probes
import lab_plans
import micro
import pytest
import recipe_probes as recipes
import rounds_plans
import w2s_stages
from field_probes import bench, cai, desk, feedback, guards, models, pipelines, training, w2s
from field_probes.guards import FEWER_TESTS
from field_probes.pipelines import SECOND
from field_probes.training import HELD_OUT
from probing import Probe, seen

from jaxrlhf import progress
from jaxrlhf.config import Config, config_in, config_in_items, differences
from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import RECIPES, supervisors, w2s_report
from jaxrlhf.recipes.rlhf import RLHFConfig
from jaxrlhf.recipes.w2s_config import OWN, W2SConfig

Table = dict[tuple[str, str], Probe]


def joined(*tables: Table) -> Table:
    """All rows; no field may have two."""
    rows = [row for table in tables for row in table.items()]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


GROUPS = joined(
    *(training.GROUPS, pipelines.GROUPS, cai.GROUPS, w2s.GROUPS, guards.GROUPS, feedback.GROUPS),
    desk.GROUPS,
)
FIELDS = joined(
    *(training.FIELDS, pipelines.FIELDS, cai.FIELDS, w2s.FIELDS, guards.FIELDS),
    *(feedback.FIELDS, models.FIELDS, desk.FIELDS, bench.FIELDS),
)
PASSED_ON = joined(
    *(training.PASSED_ON, pipelines.PASSED_ON, cai.PASSED_ON, w2s.PASSED_ON, guards.PASSED_ON),
    *(feedback.PASSED_ON, models.PASSED_ON, desk.PASSED_ON),
)
STAGES = {
    "pretrain": "sft",
    "sft": "sft",
    "sample": "sample",
    "label": "simulate-labels",
    "reward": "reward",
    "ppo": "ppo",
}
ROUNDS_STAGES = {**STAGES, "judge": "cai label"}
W2S_STAGES = {"pretrain": "sft", "adapt": "sft", "finetune": "classify"}
# The groups of a pipeline that are configs of stages, or variants of them; for those of `cai` see
# recipes/test_cai.py.
PIPELINES = {
    "rlhf": tuple(STAGES),
    "w2s": tuple(W2S_STAGES),
    "rounds": tuple(ROUNDS_STAGES),
    "cai": (*cai_plans.STAGES, "chains", "judges", "arms"),
}


# The fields there are.


def config_of(recipe: str) -> type[Config]:
    return importlib.import_module(RECIPES[recipe].module).CONFIG


def groups(cls: type[Config]) -> dict[str, type[Config]]:
    found = {
        name: config_in(field.annotation) or config_in_items(field.annotation)
        for name, field in cls.model_fields.items()
    }
    return {name: inner for name, inner in found.items() if inner is not None}


def plain(cls: type[Config]) -> list[str]:
    return [name for name in cls.model_fields if name not in groups(cls)]


def shared(cls: type[Config]) -> Iterator[type[Config]]:
    """Every group class below `cls`, `cls` included; not what is a recipe's, with probes there."""
    if cls in map(config_of, RECIPES):
        return
    yield cls
    for inner in groups(cls).values():
        yield from shared(inner)


def test_every_field_has_a_probe():
    own, below = set(), set()
    for recipe in RECIPES:
        cls = config_of(recipe)
        own |= {(recipe, name) for name in plain(cls)}
        for name, inner in groups(cls).items():
            if name not in PIPELINES.get(recipe, ()):
                below |= {(c.__name__, field) for c in shared(inner) for field in plain(c)}
    assert own == set(FIELDS)
    assert below == set(GROUPS)


def test_every_group_of_a_recipe_is_shown_to_be_passed_on():
    wanted = {(recipe, name) for recipe in RECIPES for name in groups(config_of(recipe))}
    stages = {(recipe, stage) for recipe, found in PIPELINES.items() for stage in found}
    assert wanted == set(PASSED_ON) | stages


@pytest.fixture(scope="module")
def second_pipeline():
    """What some probes need beside the tiny pipeline."""
    text = (micro.pipeline() / "micro.yaml").read_text()
    with open(SECOND, "w") as file:
        file.write(text.replace("max_steps: 8", "max_steps: 7"))
    with open(FEWER_TESTS, "w") as file:
        file.write(text.replace("test_preferences: 8", "test_preferences: 7"))
    cai_plans.make_second()
    rounds_plans.make_second()
    lab_plans.make_second()
    recipes.make_other_reward()
    recipes.make_fewer_samples()
    recipes.make_other_vocabularies()
    recipes.make_labelled()
    with mock.patch.object(progress.console, "print"):  # drawing tables takes long
        yield


EVERY = {f"{cls}.{field}": probe for (cls, field), probe in GROUPS.items()}
EVERY |= {f"{recipe}: {field}": probe for (recipe, field), probe in FIELDS.items()}
EVERY |= {f"{recipe}: {group} arrives": probe for (recipe, group), probe in PASSED_ON.items()}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.usefixtures("second_pipeline")
def test_the_field_has_an_effect(name):
    probe = EVERY[name]
    assert seen(probe.observe, *probe.base, *probe.change) != seen(probe.observe, *probe.base)


@pytest.mark.parametrize(
    "observe",
    [probes.optimizer, probes.model, probes.task],
    ids=lambda probe: probe.__name__,
)
def test_without_a_change_a_probe_sees_no_difference(observe):
    assert observe() == observe()


@pytest.mark.usefixtures("second_pipeline")
def test_the_program_of_an_update_is_the_same_text_each_time():
    for recipe in HELD_OUT:
        first = recipes.training_stage(recipe)
        again = recipes.training_stage.__wrapped__(recipe)
        assert first.update == again.update and first.batch == again.batch


@pytest.mark.parametrize("recipe", HELD_OUT)
@pytest.mark.usefixtures("second_pipeline")
def test_a_recipe_trains_in_the_folder_of_its_own_config(recipe):
    """So what is shown for `stages.train` (checkpoints, logs, seed) holds for the recipe."""
    stage = recipes.training_stage(recipe, "seed=4", "save_steps=7")
    assert type(stage.config) is config_of(recipe)
    assert (stage.config.seed, stage.config.save_steps) == (4, 7)


# The pipeline passes every field of every stage on, or refuses it.

BELONGS_TO_THE_PIPELINE = ("output_dir", "seed", "dtype", "remat", "mesh.data", "mesh.tensor")
WORLD = ("label.world.name", "label.world.seed", "label.world.settings")
NOT_FOR_PPO = ("min_new_tokens", "top_k", "top_p", "min_p")


def stage_fields(stages: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Path below a pipeline's config, and an override of it that has another value."""
    for stage, recipe in stages.items():
        cls = config_of(recipe)
        for field in plain(cls):
            yield f"{stage}.{field}", FIELDS[recipe, field].change[0]
        for group, inner in groups(cls).items():
            for path, change in group_fields(inner):
                yield f"{stage}.{group}.{path}", change


def group_fields(cls: type[Config]) -> Iterator[tuple[str, str]]:
    for field in plain(cls):
        yield field, GROUPS[cls.__name__, field].change[0]
    for group, inner in groups(cls).items():
        yield from ((f"{group}.{path}", change) for path, change in group_fields(inner))


# Stages are looked at: neither figures nor what a supervisor of words learns.
@mock.patch.object(w2s_report, "run", lambda *_, **__: {})
@mock.patch.object(supervisors, "_word_judge", lambda *_: lambda _, rows: supervisors.probs(rows))
def test_the_experiment_passes_every_field_of_a_stage_on_or_refuses_it():
    base = ("adapt={}", "grids.main.start=[adapted]", "grids.main.losses=[naive]")
    before, refused = w2s_stages.observed(*base), set()
    for path, change in stage_fields(W2S_STAGES):
        value = change.partition("=")[2]
        try:
            W2SConfig.load(None, (*base, f"{path}={value}"))
        except ConfigError:
            refused.add(path)
            continue
        assert w2s_stages.observed(*base, f"{path}={value}") != before, f"{path} does not arrive"
    stated = {f"{block}.{field}" for block, own in OWN.items() for field in own}
    fields = {path for path, _ in stage_fields(W2S_STAGES)}
    wanted = {path for path in fields for own in stated if f"{path}.".startswith(f"{own}.")}
    assert refused == wanted


def test_the_pipeline_passes_every_field_of_a_stage_on_or_refuses_it():
    base = ("sft={}", "ppo.batch_size=8", "sample.prompts.files=[a.jsonl]")
    before, refused = planned(*base), []
    for path, change in stage_fields(STAGES):
        value = change.partition("=")[2]
        try:
            after = planned(*base, f"{path}={value}", *companions(path))
        except ConfigError:
            refused.append(path)
            continue
        changed = [found.path for found in differences(before, after)]
        assert path in changed, f"{path} = {value} does not arrive: {changed}"
    wanted = [
        path
        for path, _ in stage_fields(STAGES)
        if path.partition(".")[2] in BELONGS_TO_THE_PIPELINE
        or path in WORLD
        or path in [f"ppo.sampling.{name}" for name in NOT_FOR_PPO]
    ]
    assert refused == wanted


def test_the_rounds_pass_every_field_of_a_stage_on_or_refuse_it():
    refused = []
    for path, change in stage_fields(ROUNDS_STAGES):
        value, who = change.partition("=")[2], rounds_plans.labeller(path)
        try:
            after = rounds_plans.planned(*who, f"{path}={value}", *companions(path))
        except ConfigError:
            refused.append(path)
            continue
        changed = [x.path for x in differences(seen(rounds_plans.planned, *who), after)]
        if companions(path):  # which arrive too
            changed = [found for found in changed if found.endswith(path.partition(".")[2])]
        assert changed, f"{path} = {value} does not arrive"
    wanted = [
        path
        for path, _ in stage_fields(ROUNDS_STAGES)
        if path.partition(".")[2] in BELONGS_TO_THE_PIPELINE
        or path in rounds_plans.decided()
        or path in [f"ppo.sampling.{name}" for name in NOT_FOR_PPO]
    ]
    assert refused == wanted


def companions(path: str) -> tuple[str, ...]:
    """What a value needs beside it to be valid."""
    needed = {
        "ppo.ppo.kl_in": ("ppo.ppo.kl_estimator=k2",),
        "ppo.stop_kl": ("ppo.eval_steps=2",),
        "reward.zero_head": ("reward.normalize_before=false",),
    }
    return needed.get(path, ())


def planned(*overrides: str) -> dict[str, Any]:
    """The config of every stage of a pipeline of files."""
    return recipes.plan(RLHFConfig.load(None, overrides))
