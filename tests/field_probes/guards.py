"""Probes of guards: a limit is tried on a log in which the guard stops it (`guard_cases.py`)."""

import guard_probes as guards
import lab_all_plans
import micro
import recipe_probes as recipes
from field_probes.training import HELD_OUT_PROMPTS
from probing import Probe, p

DRIFTS = {
    "Fluency": "fluency",
    "Entropy": "entropy",
    "Repetition": "repetition",
    "Length": "length",
    "EosRate": "eos_rate",
}
FEWER_TESTS = f"{micro.scratch()}/fewer_tests.yaml"


# Groups: (class, field) -> probe. The change is an override of the class itself.

GROUPS: dict[tuple[str, str], Probe] = {
    ("GuardsConfig", "dry_run"): p(guards.case("kl_budget"), "dry_run=true"),
    ("GuardsConfig", "warn"): p(guards.case("kl_budget"), "warn=[kl_budget]"),
    ("GuardsConfig", "off"): p(guards.case("kl_budget"), "off=[kl_budget]"),
    ("GuardsConfig", "labeller"): p(
        recipes.guards_of_ppo, "guards.labeller=recipe_probes:first_is_better"
    ),
    ("Canary", "files"): p(
        recipes.first_figures, "guards.canary.files=[run/label/preferences.jsonl]"
    ),
    ("Canary", "columns"): p(
        recipes.first_figures,
        "guards.canary.columns={chosen: rejected, rejected: chosen}",
        base=recipes.CANARIES,
    ),
    ("Canary", "pairs"): p(recipes.first_figures, "guards.canary.pairs=3", base=recipes.CANARIES),
    ("Canary", "min_right"): p(guards.case("canary"), "canary.min_right=0.3"),
    ("Readings", "min_correlation"): p(guards.case("readings"), "readings.min_correlation=0.9"),
    ("Direction", "updates"): p(guards.figures, "direction.updates=1"),
    ("Direction", "standard_errors"): p(guards.case("direction"), "direction.standard_errors=99"),
    ("KLBudget", "max_kl"): p(guards.case("kl_budget"), "kl_budget.max_kl=60"),
    ("Fluency", "max_drop"): p(guards.case("fluency"), "fluency.max_drop=3"),
    ("Entropy", "min_share"): p(guards.case("entropy"), "entropy.min_share=0.01"),
    ("Repetition", "max_rise"): p(guards.case("repetition"), "repetition.max_rise=0.9"),
    ("Length", "max_factor"): p(guards.case("length"), "length.max_factor=9"),
    ("EosRate", "min_share"): p(guards.case("eos_rate"), "eos_rate.min_share=0.1"),
    **{(cls, "updates"): p(guards.case(x), f"{x}.updates=5") for cls, x in DRIFTS.items()},
    ("Andon", "pairs"): p(guards.figures, "andon.pairs=3"),
    ("Andon", "confirm"): p(guards.suspicion, "andon.confirm=0"),
    ("Andon", "candidates"): p(guards.figures, "andon.candidates=4"),
    ("Andon", "limit"): p(guards.case("andon"), "andon.limit=9"),
    ("WinRate", "pairs"): p(guards.wins, "win_rate.pairs=3"),
    ("WinRate", "limit"): p(guards.case("win_rate"), "win_rate.limit=9"),
    ("Trend", "standard_errors"): p(guards.case("trend"), "trend.standard_errors=9"),
    ("Trend", "evaluations"): p(guards.case("trend"), "trend.evaluations=5"),
    ("Disagreement", "reward_models"): p(
        recipes.guards_of_ppo,
        f"guards.disagreement.reward_models=[{recipes.OTHER_REWARD}]",
        base=HELD_OUT_PROMPTS,
    ),
    ("Disagreement", "max_ratio"): p(guards.case("disagreement"), "disagreement.max_ratio=9"),
    ("StopFile", "name"): p(guards.cord, "stop_file.name=HALT"),
}

# Fields of a recipe itself: (recipe, field) -> probe.

FIELDS: dict[tuple[str, str], Probe] = {
    ("lab all", "output_dir"): p(lab_all_plans.probe, "output_dir=elsewhere"),
    ("lab all", "tiny"): p(lab_all_plans.probe, "tiny=true"),
    ("lab all", "experiments"): p(lab_all_plans.probe, "experiments=[ratings]"),
    ("lab sign-flip", "output_dir"): p(recipes.sign_flip, "output_dir=elsewhere"),
    ("lab sign-flip", "config"): p(
        recipes.sign_flip, f"config={FEWER_TESTS}", base=("overrides=[]",)
    ),
    ("lab sign-flip", "overrides"): p(recipes.sign_flip, "overrides=[test_preferences=5]"),
    ("lab sign-flip", "seeds"): p(recipes.sign_flip, "seeds=[3]"),
    ("lab sign-flip", "cells"): p(recipes.sign_flip, "cells=[inverted]"),
    ("lab sign-flip", "rounds"): p(recipes.sign_flip, "rounds=3"),
    ("lab sign-flip", "updates"): p(recipes.sign_flip, "updates=2"),
    ("lab sign-flip", "pairs"): p(recipes.sign_flip, "pairs=16"),
    ("lab sign-flip", "test_pairs"): p(recipes.sign_flip, "test_pairs=5"),
    ("lab sign-flip", "results"): p(recipes.sign_flip, "results=here"),
}

# Groups of a recipe: (recipe, group) -> probe that one field of the group arrives.

PASSED_ON: dict[tuple[str, str], Probe] = {
    ("ppo", "guards"): p(recipes.guards_of_ppo, "guards.kl_budget.max_kl=60"),
}
