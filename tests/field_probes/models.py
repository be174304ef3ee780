"""Probes of the commands that take a finished model."""

import micro
import recipe_probes as recipes
from eval_tiny import evaluated
from probing import Probe, p

# Fields of a recipe itself: (recipe, field) -> probe.

FIELDS: dict[tuple[str, str], Probe] = {
    ("inspect", "path"): p(recipes.inspected, "path=run/reward/model"),
    ("inspect", "recipe"): p(recipes.inspected, "recipe=ppo"),
    ("inspect", "config"): p(recipes.inspected, "config=run/ppo/config.yaml", base=("recipe=ppo",)),
    ("generate", "path"): p(recipes.generated, "path=run/pretrain/model", base=recipes.ONE_PROMPT),
    ("generate", "prompt"): p(recipes.generated, "prompt=the cook", base=recipes.ONE_PROMPT),
    ("generate", "output"): p(recipes.generated, "output=other.jsonl", base=recipes.PROMPT_FILE),
    ("generate", "chat"): p(recipes.generated, "chat=true", base=recipes.ONE_PROMPT),
    ("generate", "system"): p(
        recipes.generated, "system=kind", base=("chat=true", *recipes.ONE_PROMPT)
    ),
    ("generate", "seed"): p(recipes.generated, "seed=1", base=recipes.ONE_PROMPT),
    ("generate", "batch_size"): p(recipes.generated, "batch_size=2", base=recipes.PROMPT_FILE),
    ("generate", "dtype"): p(recipes.generated, "dtype=bfloat16", base=recipes.ONE_PROMPT),
    ("eval", "path"): p(evaluated, "path=other"),
    ("eval", "suite"): p(evaluated, "suite=choices", base=("only=[]",)),
    ("eval", "only"): p(evaluated, "only=[bbq]"),
    ("eval", "data"): p(evaluated, "data=fewer"),
    ("eval", "limit"): p(evaluated, "limit=2"),
    ("eval", "seed"): p(evaluated, "seed=1", base=("limit=2",)),
    ("eval", "output_dir"): p(evaluated, "output_dir=runs/elsewhere"),
    ("eval", "batch_size"): p(evaluated, "batch_size=2"),
    ("eval", "dtype"): p(evaluated, "dtype=bfloat16"),
    ("eval", "card"): p(evaluated, "card=false"),
    ("export", "path"): p(recipes.exported, "path=run/pretrain/model"),
    ("export", "output"): p(recipes.exported, f"output={micro.scratch()}/exported"),
    ("export", "step"): p(recipes.exported, "step=6", base=("path=run/sft",)),
    ("export", "dtype"): p(recipes.exported, "dtype=bfloat16"),
    ("export", "max_shard_gb"): p(recipes.exported, "max_shard_gb=0.000004"),
    ("export", "drop_padding"): p(
        recipes.exported, "drop_padding=true", base=(f"path={recipes.PADDED}",)
    ),
}

# Groups of a recipe: (recipe, group) -> probe that one field of the group arrives.

PASSED_ON: dict[tuple[str, str], Probe] = {
    ("inspect", "mesh"): p(recipes.inspected, "mesh.data=2"),
    ("eval", "mesh"): p(evaluated, "mesh.data=2"),
    ("eval", "sampling"): p(evaluated, "sampling.temperature=0.5"),
    ("generate", "mesh"): p(recipes.generated, "mesh.data=2", base=recipes.PROMPT_FILE),
    ("generate", "prompts"): p(recipes.generated, "prompts.limit=5", base=recipes.PROMPT_FILE),
    ("generate", "sampling"): p(
        recipes.generated, "sampling.temperature=0.5", base=recipes.ONE_PROMPT
    ),
}
