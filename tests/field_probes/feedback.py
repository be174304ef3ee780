"""Probes of what people say: the labelling page, annotators, ratings."""

import lab_dry
import lab_plans
import lab_promise_probes as promise
import lab_robot_probes as robot
import label_probes as labels
import micro
import queries_probes as queries
import ratings_probes as ratings
import rounds_plans as rounds
from probing import Probe, p

PEOPLE = ("labeller=people",)
LABS = {recipe: lab_plans.probe(recipe) for recipe in lab_plans.MODULES}
DRY = {recipe: lab_dry.probe(recipe) for recipe in lab_dry.MODULES}
LAB = {
    "output_dir": "output_dir=elsewhere",
    "base_dir": "base_dir=elsewhere",
    "config": f"config={lab_plans.SECOND}",
    "overrides": "overrides=[ppo.max_steps=3]",
    "seeds": "seeds=[4]",
    "updates": "updates=3",
    "results": "results=page",
}

# Groups: (class, field) -> probe. The change is an override of the class itself.

GROUPS: dict[tuple[str, str], Probe] = {
    ("OnlineConfig", "k"): p(ratings.rated, "online.k=8", base=ratings.ONLINE),
    ("OnlineConfig", "start"): p(ratings.rated, "online.start=1500", base=ratings.ONLINE),
    ("OnlineConfig", "scale"): p(ratings.rated, "online.scale=100", base=ratings.ONLINE),
    ("OnlineConfig", "orders"): p(ratings.rated, "online.orders=3"),
    ("PeopleConfig", "overlap"): p(rounds.observed, "people.overlap=2", base=PEOPLE),
    ("PeopleConfig", "labels"): p(rounds.observed, "people.labels=[.5,.6,.7,.8]", base=PEOPLE),
    ("PeopleConfig", "margins"): p(rounds.observed, "people.margins=[0,1,2,3]", base=PEOPLE),
    ("PeopleConfig", "ties"): p(rounds.observed, "people.ties=half", base=PEOPLE),
}

# Fields of a recipe itself: (recipe, field) -> probe.

FIELDS: dict[tuple[str, str], Probe] = {
    ("label", "store"): p(labels.labelled, f"store={labels.new_folder()}/other.sqlite"),
    ("label", "pairs"): p(labels.labelled, "pairs=[preferences.jsonl, pairs.jsonl]"),
    ("label", "columns"): p(
        labels.labelled, "columns={a: prompt}", base=("pairs=[other.jsonl]", "columns={a: first}")
    ),
    ("label", "guideline"): p(labels.labelled, "guideline=guideline.md"),
    ("label", "title"): p(labels.labelled, "title=Which one?"),
    ("label", "next"): p(labels.labelled, "next=priority"),
    ("label", "overlap"): p(labels.labelled, "overlap=2"),
    ("label", "patience"): p(labels.labelled, "patience=1e-9"),
    ("label", "seed"): p(labels.labelled, "seed=1"),
    ("label", "host"): p(labels.labelled, "host=localhost"),
    ("label", "port"): p(labels.labelled, "port=1234"),
    ("label", "token"): p(labels.labelled, "token=a-token-of-enough-letters"),
    ("convert-labels", "input"): p(labels.converted, "input=[preferences.jsonl]"),
    ("convert-labels", "columns"): p(
        labels.converted,
        "columns={a: prompt}",
        base=("input=[other.jsonl]", "columns={a: first}", "format=rows"),
    ),
    ("convert-labels", "annotator"): p(
        labels.converted, "annotator=bob", base=("input=[preferences.jsonl]",)
    ),
    ("convert-labels", "output"): p(labels.converted, f"output={labels.new_folder()}/other.jsonl"),
    ("convert-labels", "format"): p(labels.converted, "format=argilla"),
    ("convert-labels", "labels"): p(labels.converted, "labels=[.5,.6,.7,.8]"),
    ("convert-labels", "margins"): p(labels.converted, "margins=[0,1,2,3]"),
    ("convert-labels", "ties"): p(labels.converted, "ties=half"),
    ("elo", "battles"): p(ratings.rated, "battles=fewer.jsonl"),
    ("elo", "output_dir"): p(ratings.rated, "output_dir=elsewhere"),
    ("elo", "columns"): p(
        ratings.rated, "columns={model_a: player}", base=("battles=swapped.jsonl",)
    ),
    ("elo", "outcomes"): p(ratings.rated, "outcomes={better: 1}", base=("battles=words.jsonl",)),
    ("elo", "limit"): p(ratings.rated, "limit=60"),
    ("elo", "on_bad_row"): p(ratings.rated, "on_bad_row=skip", base=("battles=bad.jsonl",)),
    ("elo", "ties"): p(ratings.rated, "ties=davidson"),
    ("elo", "prior"): p(ratings.rated, "prior=1"),
    ("elo", "phantom"): p(ratings.rated, "phantom=1"),
    ("elo", "covariates"): p(ratings.rated, "covariates=[length]"),
    ("elo", "texts"): p(ratings.rated, "texts=[a, prompt]", base=("covariates=[length]",)),
    ("elo", "effects_prior"): p(ratings.rated, "effects_prior=9", base=("covariates=[length]",)),
    ("elo", "anchor"): p(ratings.rated, "anchor=base"),
    ("elo", "anchor_rating"): p(ratings.rated, "anchor_rating=0"),
    ("elo", "interval"): p(ratings.rated, "interval=bootstrap", base=("resamples=100",)),
    ("elo", "resamples"): p(ratings.rated, "resamples=101", base=ratings.BOOTSTRAP),
    ("elo", "cluster"): p(ratings.rated, "cluster=prompt", base=ratings.BOOTSTRAP),
    ("elo", "confidence"): p(ratings.rated, "confidence=0.9"),
    ("elo", "seed"): p(ratings.rated, "seed=1", base=ratings.BOOTSTRAP),
    ("annotators", "labels"): p(ratings.judged, "labels=fewer.jsonl"),
    ("annotators", "output_dir"): p(ratings.judged, "output_dir=elsewhere"),
    ("annotators", "columns"): p(
        ratings.judged, "columns={a: text_a, b: text_b}", base=("labels=swapped.jsonl",)
    ),
    ("annotators", "outcomes"): p(
        ratings.judged, "outcomes={better: 1}", base=("labels=words.jsonl",)
    ),
    ("annotators", "wide"): p(
        ratings.judged, "wide=[one, two, three]", base=("labels=wide.jsonl",)
    ),
    ("annotators", "limit"): p(ratings.judged, "limit=60"),
    ("annotators", "on_bad_row"): p(ratings.judged, "on_bad_row=skip", base=("labels=bad.jsonl",)),
    ("annotators", "model"): p(ratings.judged, "model=majority"),
    ("annotators", "prior"): p(ratings.judged, "prior=5"),
    ("annotators", "seed"): p(ratings.judged, "seed=1"),
    ("rate-answers", "comparisons"): p(ratings.pooled, "comparisons=fewer.jsonl"),
    ("rate-answers", "output_dir"): p(ratings.pooled, "output_dir=elsewhere"),
    ("rate-answers", "columns"): p(
        ratings.pooled, "columns={a: text_a, b: text_b}", base=("comparisons=swapped.jsonl",)
    ),
    ("rate-answers", "outcomes"): p(
        ratings.pooled, "outcomes={better: 1}", base=("comparisons=words.jsonl",)
    ),
    ("rate-answers", "limit"): p(ratings.pooled, "limit=60"),
    ("rate-answers", "on_bad_row"): p(
        ratings.pooled, "on_bad_row=skip", base=("comparisons=bad.jsonl",)
    ),
    ("rate-answers", "prior"): p(ratings.pooled, "prior=3"),
    ("rate-answers", "pairs"): p(ratings.pooled, "pairs=compared"),
    ("rate-answers", "target"): p(ratings.pooled, "target=margin"),
    ("rounds", "output_dir"): p(rounds.observed, "output_dir=elsewhere"),
    ("rounds", "seed"): p(rounds.observed, "seed=1"),
    ("rounds", "dtype"): p(rounds.observed, "dtype=bfloat16"),
    ("rounds", "remat"): p(rounds.observed, "remat=true"),
    ("rounds", "model_path"): p(
        rounds.observed, "model_path=other", base=("pretrain=null", "model_path=first")
    ),
    ("rounds", "rounds"): p(rounds.observed, "rounds=3"),
    ("rounds", "pairs"): p(rounds.observed, "pairs=7"),
    ("rounds", "spare"): p(rounds.observed, "spare=3"),
    ("rounds", "test_share"): p(rounds.observed, "test_share=0.3"),
    ("rounds", "mix"): p(rounds.observed, "mix=last"),
    ("rounds", "policy_init"): p(rounds.observed, "policy_init=previous"),
    ("rounds", "kl_step"): p(rounds.observed, "kl_step=3", base=("ppo.eval_steps=2",)),
    ("rounds", "reward_init"): p(rounds.observed, "reward_init=previous"),
    ("rounds", "labeller"): p(rounds.observed, "labeller=people"),
    ("rounds seeds", "output_dir"): p(rounds.seeds, "output_dir=elsewhere"),
    ("rounds seeds", "config"): p(rounds.seeds, f"config={rounds.SECOND}"),
    ("rounds seeds", "overrides"): p(rounds.seeds, "overrides=[spare=3]"),
    ("rounds seeds", "seeds"): p(rounds.seeds, "seeds=[1, 3]"),
    ("rounds seeds", "arms"): p(rounds.seeds, "arms=[1, 3]"),
    ("rounds seeds", "labels"): p(rounds.seeds, "labels=24"),
    ("rounds seeds", "kl"): p(rounds.seeds, "kl=10"),
    ("rounds seeds", "split_kl"): p(rounds.seeds, "split_kl=false"),
    ("rounds seeds", "min_gain"): p(rounds.seeds, "min_gain=9"),
    ("rounds seeds", "min_passes"): p(rounds.seeds, "min_passes=3"),
    ("rounds seeds", "results"): p(rounds.seeds, "results=page"),
    ("queries", "output_dir"): p(queries.asked, f"output_dir={micro.scratch()}/queries"),
    ("queries", "seed"): p(queries.asked, "seed=1", base=("by=random",)),
    ("queries", "pairs"): p(queries.asked, "pairs=[run/label/test_preferences.jsonl]"),
    ("queries", "columns"): p(
        queries.asked, "columns={chosen: prompt}", base=("pairs=[run/label/preferences.jsonl]",)
    ),
    ("queries", "reward_models"): p(
        queries.asked, "reward_models=[run/reward/model, run/reward/model]"
    ),
    ("queries", "by"): p(queries.asked, "by=information"),
    ("queries", "dtype"): p(queries.asked, "dtype=bfloat16"),
    ("queries", "max_length"): p(queries.asked, "max_length=6"),
    ("queries", "batch_size"): p(queries.asked, "batch_size=8"),
    **{
        (recipe, field): p(probe, change)
        for recipe, probe in LABS.items()
        for field, change in LAB.items()
    },
    ("lab queries", "pool"): p(LABS["lab queries"], "pool=13"),
    ("lab queries", "budgets"): p(LABS["lab queries"], "budgets=[4, 7]"),
    ("lab queries", "members"): p(LABS["lab queries"], "members=3"),
    ("lab queries", "arms"): p(LABS["lab queries"], "arms=[random]"),
    ("lab ratings", "prompts"): p(LABS["lab ratings"], "prompts=5"),
    ("lab ratings", "answers"): p(LABS["lab ratings"], "answers=3"),
    ("lab ratings", "comparisons"): p(LABS["lab ratings"], "comparisons=[2, 3]"),
    ("lab ratings", "prior"): p(LABS["lab ratings"], "prior=3"),
    ("lab annotators", "pairs"): p(LABS["lab annotators"], "pairs=7"),
    ("lab annotators", "reliabilities"): p(
        LABS["lab annotators"], "reliabilities=[.9,.9,.2,.2,.5]"
    ),
    ("lab annotators", "verdicts"): p(LABS["lab annotators"], "verdicts=[3]"),
    ("lab overoptimise", "pairs"): p(DRY["lab overoptimise"], "pairs=[3]"),
    ("lab overoptimise", "sizes"): p(DRY["lab overoptimise"], "sizes=[12]"),
    ("lab overoptimise", "members"): p(DRY["lab overoptimise"], "members=3"),
    ("lab overoptimise", "ppo_updates"): p(DRY["lab overoptimise"], "ppo_updates=9"),
    ("lab overoptimise", "points"): p(DRY["lab overoptimise"], "points=8"),
    ("lab overoptimise", "best_of"): p(DRY["lab overoptimise"], "best_of=2"),
    ("lab noise", "pairs"): p(DRY["lab noise"], "pairs=5"),
    ("lab noise", "errors"): p(DRY["lab noise"], "errors=[0,0.2,0.3]"),
    ("lab noise", "treated"): p(DRY["lab noise"], "treated=[0]"),
    ("lab noise", "adversaries"): p(DRY["lab noise"], "adversaries=[0.2,0.4]"),
    ("lab noise", "crowd"): p(DRY["lab noise"], "crowd=4"),
    ("lab noise", "reliability"): p(DRY["lab noise"], "reliability=0.5"),
    ("lab noise", "verdicts"): p(DRY["lab noise"], "verdicts=2"),
    ("lab noise", "ppo_updates"): p(DRY["lab noise"], "ppo_updates=9"),
    **{
        (recipe, field): p(probe, change)
        for recipe, probe in DRY.items()
        for field, change in lab_dry.common(recipe).items()
    },
    ("lab promise", "output_dir"): p(promise.probe, "output_dir=elsewhere"),
    ("lab promise", "seeds"): p(promise.probe, "seeds=[4]"),
    ("lab promise", "results"): p(promise.probe, "results=page"),
    ("lab promise", "rounds"): p(promise.probe, "rounds=1"),
    ("lab promise", "penalties"): p(promise.probe, "penalties=[1]"),
    ("lab promise", "updates"): p(promise.probe, "updates=4"),
    ("lab promise", "games"): p(promise.probe, "games=9"),
    ("lab promise", "learning_rate"): p(promise.probe, "learning_rate=0.1"),
    ("lab promise", "entropy_coef"): p(promise.probe, "entropy_coef=9"),
    ("lab promise", "width"): p(promise.probe, "width=5"),
    ("lab promise", "test_games"): p(promise.probe, "test_games=65"),
    ("lab sycophancy", "ratios"): p(DRY["lab sycophancy"], "ratios=[0,2]"),
    ("lab sycophancy", "pairs"): p(DRY["lab sycophancy"], "pairs=6", base=("pairs=5",)),
    ("lab sycophancy", "test_pairs"): p(DRY["lab sycophancy"], "test_pairs=3"),
    ("lab sycophancy", "ppo_updates"): p(DRY["lab sycophancy"], "ppo_updates=9"),
    ("lab hacking", "flaws"): p(DRY["lab hacking"], "flaws=[length]"),
    ("lab hacking", "repetition"): p(DRY["lab hacking"], "repetition=50", base=("pairs=12",)),
    ("lab hacking", "length"): p(DRY["lab hacking"], "length=50"),
    ("lab hacking", "word"): p(
        DRY["lab hacking"], "word=50", base=("flaws=[length,word]", "pairs=24")
    ),
    ("lab hacking", "mitigated"): p(DRY["lab hacking"], "mitigated=repetition"),
    ("lab hacking", "kl_coef"): p(DRY["lab hacking"], "kl_coef=0.3"),
    ("lab hacking", "pairs"): p(DRY["lab hacking"], "pairs=5"),
    ("lab hacking", "ppo_updates"): p(DRY["lab hacking"], "ppo_updates=9"),
    ("lab robot", "output_dir"): p(robot.probe, "output_dir=elsewhere"),
    ("lab robot", "seeds"): p(robot.probe, "seeds=[4]"),
    ("lab robot", "results"): p(robot.probe, "results=page"),
    ("lab robot", "depth_cues"): p(robot.probe, "depth_cues=[0.5]"),
    ("lab robot", "sources"): p(robot.probe, "sources=[offline]"),
    ("lab robot", "choices"): p(robot.probe, "choices=[random]"),
    ("lab robot", "comparisons"): p(robot.probe, "comparisons=14"),
    ("lab robot", "rounds"): p(robot.probe, "rounds=3"),
    ("lab robot", "members"): p(robot.probe, "members=3"),
    ("lab robot", "candidates"): p(robot.probe, "candidates=4"),
    ("lab robot", "explore"): p(robot.probe, "explore=0.9"),
    ("lab robot", "lapse"): p(robot.probe, "lapse=0.3"),
}

# Groups of a recipe: (recipe, group) -> probe that one field of the group arrives.

PASSED_ON: dict[tuple[str, str], Probe] = {
    ("elo", "online"): p(ratings.rated, "online.orders=2"),
    ("rounds", "mesh"): p(rounds.observed, "mesh.data=2"),
    ("rounds", "task"): p(rounds.observed, "task.sandbox.world.seed=3"),
    ("rounds", "people"): p(rounds.observed, "people.overlap=3", base=PEOPLE),
    ("queries", "mesh"): p(queries.asked, "mesh.data=2"),
}
