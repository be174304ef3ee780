"""`jaxrlhf inspect PATH`: what a model's folder holds, without loading its weights.

Family, sizes, tokenizer, what would not load and why, and how much memory a device needs to train
it: by `recipe`, with the fields of that recipe's `config` file, on `mesh`. Exits 2 where the model
would not load.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxrlhf.config import Config
from jaxrlhf.data import chat
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.errors import CheckpointError, UserError
from jaxrlhf.hf import folder, weights
from jaxrlhf.hf.families import FAMILIES
from jaxrlhf.hf.shards import Shards
from jaxrlhf.models import make_lm, make_scalar_model
from jaxrlhf.models.config import TransformerConfig
from jaxrlhf.recipes import blocks, memory, ppo, reward, saved, sft

RECIPES: dict[str, type[blocks.TrainConfig]] = {
    "sft": sft.SFTConfig,
    "reward": reward.RewardConfig,
    "ppo": ppo.PPOConfig,
}


class InspectConfig(Config):
    """What is looked at, and what it is to be trained with."""

    path: str | None = Field(default=None, description="folder of a model, or a hub name")
    recipe: Literal["sft", "reward", "ppo", "all"] = Field(
        default="all", description="memory to train with this recipe"
    )
    config: str | None = Field(
        default=None, description="config file of that recipe; null: its defaults"
    )
    mesh: blocks.MeshConfig | None = Field(
        default=None, description="devices, here or elsewhere; null: those of the recipe's config"
    )


CONFIG = InspectConfig
EXAMPLE = "jaxrlhf inspect my-model recipe=ppo config=configs/ppo.yaml mesh.data=2 mesh.tensor=4"


def run(config: InspectConfig) -> dict[str, Any]:
    """Print it; the result holds the same facts.

    Raises:
      CheckpointError: the model would not load; everything that can be said was printed.
    """
    path = blocks.required("path", config.path)
    if config.config and config.recipe == "all":
        raise UserError("config: say whose it is, with recipe=sft, reward or ppo")
    where = saved.find(path)
    base = saved.base_of(where)
    console = Console(highlight=False, soft_wrap=True)
    problems: list[str] = []
    found = attempt(lambda: saved.reader(where).load_config(where), problems)
    facts = weights_facts(base, found, problems)
    needs = memory_needs(config, found, problems) if found else {}
    words = attempt(lambda: tokenizer_facts(where, found), problems) or {}
    show(console, str(where), facts)
    show(console, "Tokenizer", words)
    for name, parts in needs.items():
        show(console, f"Memory a device: {name}", parts)
    if problems:
        console.print("[bold red]It would not load[/]")
        for problem in problems:
            console.print(f"  {escape(problem)}")
        raise CheckpointError(f"{path}: {len(problems)} problem{'s'[: len(problems) > 1]}, above")
    console.print("It would load.")
    return {"model": facts, "tokenizer": words, "memory": needs}


def attempt(action, problems: list[str]) -> Any:
    """The result, or None and one more problem."""
    try:
        return action()
    except UserError as error:
        problems.append(str(error))
        return None


def weights_facts(
    where: Path, found: folder.Description | None, problems: list[str]
) -> dict[str, str]:
    """Family, sizes, and what the headers of the files say."""
    facts: dict[str, str] = {}
    if found is not None:
        facts |= architecture(found)
    files = attempt(lambda: Shards(where), problems)
    if files is not None:
        stored = [files.stored(name) for name in files]
        kinds = sorted({tensor.dtype for tensor in stored})
        size = sum(path.stat().st_size for path in {files.path(name) for name in files})
        facts |= {"tensors": f"{len(stored):,} ({', '.join(kinds)})", "on disk": in_bytes(size)}
    if files is not None and found is not None:
        family = FAMILIES[found.family]
        scalar = found.kind == "scalar"
        entries = (folder.scalar_entries if scalar else folder.lm_entries)(family, found.config)
        ignored = (*family.ignored, *(folder.OUTPUT_HEADS if scalar else ()))
        attempt(lambda: weights.check(where, entries, ignored=ignored), problems)
    return facts


def architecture(found: folder.Description) -> dict[str, str]:
    """What config.json says."""
    config = found.config
    if found.kind == "lm":
        init, what = make_lm(config).init, "language model"
    else:
        init, what = make_scalar_model(config).init, "reward model"
        what += "" if found.final_norm else ", head before the last norm"
        what += f", {found.pooling} token{'s' if found.pooling == 'mean' else ''}"
    shapes = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
    heads = f"{config.num_heads} heads of {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f", {config.num_kv_heads} for keys and values"
    return {
        "holds": what,
        "family": found.family,
        "parameters": f"{sum(leaf.size for leaf in shapes):,}",
        "layers": f"{config.num_layers} of width {config.d_model}, MLP {config.d_ff}, {heads}",
        "vocabulary": f"{config.vocab_size:,} rows, {'tied' if config.tied_head else 'own'} head",
        "reads": f"{config.max_positions:,} tokens, {config.positions} positions",
    }


def tokenizer_facts(where: Path, found: folder.Description | None) -> dict[str, str]:
    """What training has to know of the tokenizer."""
    words = tokenizers.load_tokenizer(where)

    def named(name: str) -> str:
        token, number = getattr(words, f"{name}_token"), getattr(words, f"{name}_token_id")
        return "none" if number is None else f"{token} ({number})"

    facts = {"tokens": f"{len(words):,}"}
    rows = found.config.vocab_size if found else len(words)
    if len(words) > rows:
        facts["tokens"] += f", {len(words) - rows} more than the model has rows"
    elif len(words) < rows:
        facts["tokens"] += f"; the model's other {rows - len(words)} rows are padding"
    facts |= {name: named(name) for name in ("bos", "eos", "pad")}
    if words.pad_token_id == words.eos_token_id:
        facts["pad"] += ", the end token: masks tell them apart"
    bos = chat.adds_bos(words)
    facts["before a text"] = f"{words.bos_token}" if bos else "nothing"
    facts["chat template"] = chat.template_kind(words)
    stops = chat.stop_ids(words)
    facts["an answer ends with"] = ", ".join(words.convert_ids_to_tokens(list(stops)))
    return facts


def memory_needs(
    config: InspectConfig, found: folder.Description, problems: list[str]
) -> dict[str, dict[str, str]]:
    """Recipe -> what -> bytes a device, as text."""
    needs = {}
    for name in RECIPES if config.recipe == "all" else (config.recipe,):
        settings = RECIPES[name].load(config.config)
        mesh = config.mesh or settings.mesh
        ways = mesh.data if mesh.data > 0 else max(jax.device_count() // mesh.tensor, 1)
        parts = attempt(
            lambda s=settings, w=ways, t=mesh.tensor: parts_of(s, found, w, t), problems
        )
        if parts is None:
            continue
        title = f"{name}, mesh ({ways}, {mesh.tensor}), {described(settings, found.config)}"
        whole = {"at its peak": memory.peak(parts), **parts}
        needs[title] = {what: in_bytes(size) for what, size in whole.items() if size}
    return needs


def parts_of(
    settings: blocks.TrainConfig, found: folder.Description, data: int, tensor: int
) -> memory.Parts:
    """`memory` asked about a recipe's config."""
    common: dict[str, Any] = {
        "data": data,
        "tensor": tensor,
        "rows": settings.batch_size,
        "remat": settings.remat,
        "dtype_bytes": jnp.dtype(settings.dtype).itemsize,
        "mu_bytes": jnp.dtype(settings.optimizer.adam_mu_dtype).itemsize,
    }
    assert isinstance(settings, sft.SFTConfig | reward.RewardConfig | ppo.PPOConfig)
    if settings.lora:
        common["lora"] = settings.lora.build(found.config, family=found.family)
    if isinstance(settings, ppo.PPOConfig):
        split = settings.ppo.model_dump()
        accumulated = split["gradient_accumulation_steps"]
        new = settings.sampling.response_length
        setting = memory.Setting(
            **common,
            columns=settings.prompts.max_length + new,
            pieces=split["num_mini_batches"] * accumulated,
            accumulated=accumulated > 1,
            chunk_size=settings.chunk_size,
            frozen_bytes=jnp.dtype(settings.frozen_dtype).itemsize,
        )
        return memory.ppo(
            found.config,
            setting,
            new_tokens=new,
            shared_value=split["value_model"] == "shared",
            reward_model=settings.reward_function is None,
        )
    pieces = settings.gradient_accumulation_steps
    common |= {"columns": settings.max_length, "pieces": pieces, "accumulated": pieces > 1}
    if isinstance(settings, sft.SFTConfig):
        return memory.sft(found.config, memory.Setting(**common, chunk_size=settings.chunk_size))
    return memory.reward(found.config, memory.Setting(**common))


def described(settings: blocks.TrainConfig, model: TransformerConfig) -> str:
    """The fields that memory depends on most."""
    if isinstance(settings, ppo.PPOConfig):
        prompt, new = settings.prompts.max_length, settings.sampling.response_length
        length, text = prompt + new, f"{prompt} + {new} tokens"
    else:
        assert isinstance(settings, sft.SFTConfig | reward.RewardConfig)
        length, text = settings.max_length, f"{settings.max_length} tokens"
    text += " (more than the model reads)" if length > model.max_positions else ""
    return f"{settings.batch_size} rows of {text}, {settings.dtype}"


def show(console: Console, title: str, facts: dict[str, str]) -> None:
    """A block of names and values."""
    if not facts:
        return
    console.print(f"[bold]{escape(title)}[/]")
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(escape(f"  {name}"), escape(value))
    console.print(table)
    console.print()


def in_bytes(size: float) -> str:
    """A number of bytes, readable.

    >>> in_bytes(2_500_000_000)
    '2.50 GB'
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size:.0f} B"
