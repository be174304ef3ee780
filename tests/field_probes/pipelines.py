"""Probes of the rlhf pipeline, its seeds, its samples and its simulated labels."""

import config_probes as probes
import micro
import recipe_probes as recipes
from probing import Probe, p

TASK, SENTIMENT = probes.task, ("kind=sentiment",)
SECOND = f"{micro.scratch()}/second.yaml"


# Groups: (class, field) -> probe. The change is an override of the class itself.

GROUPS: dict[tuple[str, str], Probe] = {
    ("WorldConfig", "name"): p(probes.world, "name=bistre"),
    ("WorldConfig", "seed"): p(probes.world, "seed=1"),
    ("WorldConfig", "settings"): p(probes.world, "settings={repeat_penalty: 0}"),
    ("LabellerConfig", "temperature"): p(probes.labeller, "temperature=3"),
    ("LabellerConfig", "lapse"): p(probes.labeller, "lapse=0.5"),
    ("LabellerConfig", "utility"): p(recipes.labels, "labeller.utility=length"),
    ("LabellerConfig", "soft_labels"): p(recipes.labels, "labeller.soft_labels=true"),
    ("TaskConfig", "kind"): p(TASK, "kind=sentiment"),
    ("SandboxTask", "documents"): p(TASK, "sandbox.documents=5"),
    ("SandboxTask", "demonstrations"): p(TASK, "sandbox.demonstrations=5"),
    ("SandboxTask", "prompts"): p(TASK, "sandbox.prompts=5"),
    ("SandboxTask", "test_prompts"): p(TASK, "sandbox.test_prompts=5"),
    ("SentimentTask", "sst2"): p(TASK, "sentiment.sst2=./elsewhere", base=SENTIMENT),
    ("SentimentTask", "texts"): p(
        TASK, f"sentiment.texts=[{micro.scratch()}/reviews/plain.txt]", base=SENTIMENT
    ),
    ("SentimentTask", "opening_words"): p(TASK, "sentiment.opening_words=5", base=SENTIMENT),
    ("SentimentTask", "shortest_phrase"): p(TASK, "sentiment.shortest_phrase=6", base=SENTIMENT),
    ("SentimentTask", "pair_phrases"): p(TASK, "sentiment.pair_phrases=false", base=SENTIMENT),
    ("SentimentTask", "pairs_per_text"): p(TASK, "sentiment.pairs_per_text=2", base=SENTIMENT),
}

# Fields of a recipe itself: (recipe, field) -> probe.

FIELDS: dict[tuple[str, str], Probe] = {
    ("sample", "output_dir"): p(
        recipes.asked("sample", "files"), f"output_dir={micro.scratch()}/samples"
    ),
    ("sample", "seed"): p(recipes.asked("sample"), "seed=1"),
    ("sample", "model_path"): p(recipes.asked("sample"), "model_path=run/pretrain/model"),
    ("sample", "models"): p(
        recipes.asked("sample"),
        "models=[run/sft/model, run/pretrain/model]",
        base=("model_path=null", "models=[run/sft/model]"),
    ),
    ("sample", "deduplicate"): p(recipes.asked("sample", "rows"), "deduplicate=true"),
    ("sample", "dtype"): p(recipes.asked("sample"), "dtype=bfloat16"),
    ("sample", "samples_per_prompt"): p(recipes.asked("sample"), "samples_per_prompt=3"),
    ("sample", "batch_size"): p(recipes.asked("sample"), "batch_size=8"),
    ("simulate-labels", "output_dir"): p(recipes.labels, f"output_dir={micro.scratch()}/labels"),
    ("simulate-labels", "seed"): p(recipes.labels, "seed=1"),
    ("simulate-labels", "samples"): p(recipes.labels, f"samples={recipes.FEWER_SAMPLES}"),
    ("simulate-labels", "test_pairs"): p(recipes.labels, "test_pairs=3"),
    ("rlhf", "output_dir"): p(recipes.pipeline, "output_dir=elsewhere"),
    ("rlhf", "seed"): p(recipes.pipeline, "seed=1"),
    ("rlhf", "dtype"): p(recipes.pipeline, "dtype=bfloat16"),
    ("rlhf", "remat"): p(recipes.pipeline, "remat=true"),
    ("rlhf", "stages"): p(recipes.pipeline, "stages=[sft, ppo]"),
    ("rlhf", "test_preferences"): p(recipes.pipeline, "test_preferences=3"),
    ("seeds", "output_dir"): p(recipes.repetition, "output_dir=elsewhere"),
    ("seeds", "config"): p(recipes.repetition, f"config={SECOND}"),
    ("seeds", "overrides"): p(recipes.repetition, "overrides=[ppo.max_steps=3]"),
    ("seeds", "seeds"): p(recipes.repetition, "seeds=[1, 3]"),
    ("seeds", "results"): p(recipes.repetition, "results=here"),
    ("seeds", "min_gain"): p(recipes.repetition, "min_gain=1.7"),
    ("seeds", "max_kl"): p(recipes.repetition, "max_kl=0.5"),
    ("seeds", "min_legal"): p(recipes.repetition, "min_legal=0.95"),
    ("seeds", "min_passes"): p(recipes.repetition, "min_passes=3"),
}

# Groups of a recipe: (recipe, group) -> probe that one field of the group arrives.

PASSED_ON: dict[tuple[str, str], Probe] = {
    ("sample", "mesh"): p(recipes.asked("sample"), "mesh.data=2"),
    ("sample", "prompts"): p(recipes.asked("sample"), "prompts.limit=5"),
    ("sample", "sampling"): p(recipes.asked("sample"), "sampling.temperature=0.5"),
    ("simulate-labels", "world"): p(recipes.labels, "world.settings={repeat_penalty: 9}"),
    ("simulate-labels", "labeller"): p(recipes.labels, "labeller.lapse=1"),
    ("rlhf", "mesh"): p(recipes.pipeline, "mesh.data=2"),
    ("rlhf", "task"): p(recipes.pipeline, "task.sandbox.world.seed=3"),
}
