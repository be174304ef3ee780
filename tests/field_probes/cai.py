"""Probes of Constitutional AI: its commands, and its pipeline of stages that say their configs."""

import cai_plans
import cai_probes as cai
import cai_tiny
import micro
from probing import Probe, p

REVISE, LABEL, JUDGE = (cai.outcome(recipe) for recipe in cai_tiny.BASE)
ASKS = {
    "output_dir": f"output_dir={micro.scratch()}/elsewhere",
    "seed": "seed=1",
    "model_path": "model_path=other",
    "dtype": "dtype=bfloat16",
    "constitution": "constitution=fewer.yaml",
    "few_shot": "few_shot=0",
    "batch_size": "batch_size=8",
}
CHOOSES = {
    **ASKS,
    "both_orders": "both_orders=false",
    "calibrate": "calibrate=true",
    "questions_per_pair": "questions_per_pair=2",
    "comparisons": "comparisons=2",
    "think": "think=true",
}
CAI = {
    (recipe, field): p(cai.outcome(recipe), change)
    for recipe in cai_tiny.BASE
    for field, change in (ASKS if recipe == "cai critique-revise" else CHOOSES).items()
}


# Groups: (class, field) -> probe. The change is an override of the class itself.

GROUPS: dict[tuple[str, str], Probe] = {
    ("CAITaskConfig", "kind"): p(cai_plans.task, "kind=files"),
    **{
        ("HelpdeskTask", name): p(cai_plans.task, f"helpdesk.{name}={count}")
        for name, count in {
            "documents": 5,
            "demonstrations": 5,
            "lessons": 5,
            "comparisons": 5,
            "red_prompts": 5,
            "helpful_prompts": 5,
            "test_prompts": 25,
        }.items()
    },
    **{
        ("FilesTask", name): p(cai_plans.task, f"files.{name}=[c]", base=cai_plans.FILES)
        for name in (
            *("red_prompts", "helpful_prompts", "test_prompts"),
            *("demonstrations", "comparisons", "helpful_pairs", "harm_pairs"),
        )
    },
    ("PairsConfig", "files"): p(cai.pairs, "files=[renamed.jsonl]"),
    ("PairsConfig", "columns"): p(
        cai.pairs, "columns={prompt: question}", base=("files=[renamed.jsonl]",)
    ),
    ("PairsConfig", "limit"): p(cai.pairs, "limit=5"),
    ("PairsConfig", "group_by"): p(cai.pairs, "group_by=kind"),
    ("ServerConfig", "url"): p(cai.server, "url=http://localhost:2/v1"),
    ("ServerConfig", "model"): p(cai.server, "model=other"),
    ("ServerConfig", "api"): p(cai.served, "api=chat"),
    ("ServerConfig", "key_variable"): p(cai.server, "key_variable=KEY"),
    ("ServerConfig", "cache"): p(cai.server, "cache=there"),
    ("ServerConfig", "concurrency"): p(cai.server, "concurrency=2"),
    ("ServerConfig", "timeout"): p(cai.server, "timeout=2"),
    ("ServerConfig", "retries"): p(cai.server, "retries=2"),
    ("ServerConfig", "backoff"): p(cai.server, "backoff=2"),
    ("ServerConfig", "price_read"): p(cai.server, "price_read=3"),
    ("ServerConfig", "price_written"): p(cai.server, "price_written=3"),
    ("ServerConfig", "seconds_per_request"): p(cai.server, "seconds_per_request=3"),
    ("ServerConfig", "max_cost"): p(cai.server, "max_cost=0.0001"),
    ("ServerConfig", "estimate_only"): p(cai.served, "estimate_only=true"),
}

# Fields of a recipe itself: (recipe, field) -> probe.

FIELDS: dict[tuple[str, str], Probe] = {
    **CAI,
    ("cai critique-revise", "keep_unfinished"): p(REVISE, "keep_unfinished=false"),
    ("cai critique-revise", "rounds"): p(REVISE, "rounds=1"),
    ("cai critique-revise", "direct"): p(REVISE, "direct=true"),
    ("cai critique-revise", "principles"): p(REVISE, "principles=2"),
    ("cai critique-revise", "revisions"): p(REVISE, "revisions=last"),
    ("cai critique-revise", "helpful"): p(REVISE, *cai.HELPFUL),
    ("cai critique-revise", "helpful_ratio"): p(REVISE, "helpful_ratio=0.25", base=cai.HELPFUL),
    ("cai label", "keep_unfinished"): p(LABEL, "keep_unfinished=false", base=("think=true",)),
    ("cai label", "samples"): p(LABEL, "samples=some_samples.jsonl"),
    ("cai label", "hard"): p(LABEL, "hard=true"),
    ("cai label", "clamp"): p(LABEL, "clamp=[0.4, 0.6]"),
    ("cai label", "ai_label_weight"): p(LABEL, "ai_label_weight=0.5"),
    ("cai label", "human"): p(LABEL, *cai.HUMAN),
    ("cai label", "human_ratio"): p(LABEL, "human_ratio=0.25", base=cai.HUMAN),
    ("cai label", "test_pairs"): p(LABEL, "test_pairs=3"),
    ("cai judge", "keep_unfinished"): p(JUDGE, "keep_unfinished=false", base=("think=true",)),
    ("cai", "output_dir"): p(cai_plans.pipeline, "output_dir=elsewhere"),
    ("cai", "seed"): p(cai_plans.pipeline, "seed=1"),
    ("cai", "dtype"): p(cai_plans.pipeline, "dtype=bfloat16"),
    ("cai", "remat"): p(cai_plans.pipeline, "remat=true"),
    ("cai", "stages"): p(cai_plans.pipeline, "stages=[sample, label]"),
    ("cai", "constitution"): p(cai_plans.pipeline, "constitution=other.yaml"),
    ("cai", "model_path"): p(
        cai_plans.pipeline, "model_path=other", base=("pretrain=null", "model_path=first")
    ),
    ("cai", "sl_rounds"): p(cai_plans.pipeline, "sl_rounds=1"),
    ("cai", "sl_revisions"): p(cai_plans.pipeline, "sl_revisions=[last]"),
    ("cai seeds", "output_dir"): p(cai_plans.repetition, "output_dir=elsewhere"),
    ("cai seeds", "config"): p(cai_plans.repetition, f"config={cai_plans.SECOND}"),
    ("cai seeds", "overrides"): p(cai_plans.repetition, "overrides=[ppo.max_steps=3]"),
    ("cai seeds", "seeds"): p(cai_plans.repetition, "seeds=[1, 3]"),
    ("cai seeds", "jobs"): p(cai_plans.repetition, "jobs=4"),
    ("cai seeds", "results"): p(cai_plans.repetition, "results=here"),
    ("cai seeds", "min_passes"): p(cai_plans.repetition, "min_passes=1"),
}

# Groups of a recipe: (recipe, group) -> probe that one field of the group arrives.

PASSED_ON: dict[tuple[str, str], Probe] = {
    **{(recipe, "mesh"): p(cai.outcome(recipe), "mesh.data=2") for recipe in cai_tiny.BASE},
    ("cai critique-revise", "prompts"): p(REVISE, "prompts.limit=5"),
    ("cai critique-revise", "sampling"): p(REVISE, "sampling.temperature=0.5"),
    ("cai label", "sampling"): p(LABEL, "sampling.temperature=0.5", base=("think=true",)),
    ("cai label", "server"): p(LABEL, "server.model=other", base=cai.SERVED),
    ("cai judge", "sampling"): p(JUDGE, "sampling.temperature=0.5", base=("think=true",)),
    ("cai judge", "server"): p(JUDGE, "server.model=other", base=cai.SERVED),
    ("cai judge", "pairs"): p(JUDGE, "pairs.limit=5"),
    ("cai", "mesh"): p(cai_plans.pipeline, "mesh.data=2"),
    ("cai", "task"): p(cai_plans.pipeline, "task.helpdesk.world.seed=3"),
    ("cai", "chains"): p(cai_plans.pipeline, "chains=[{name: other}]"),
    ("cai", "judges"): p(cai_plans.pipeline, "judges=[{name: other}]"),
    ("cai", "arms"): p(cai_plans.pipeline, "arms=[{name: other}]"),
}
