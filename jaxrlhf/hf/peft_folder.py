"""Adapters as PEFT keeps them: adapter_config.json beside adapter_model.safetensors, both ways.

Theirs are `NAME.lora_A.weight` `[r, in]` and `NAME.lora_B.weight` `[out, r]`, NAME a module of the
base; ours are stacked, transposed, and named as our projections. Three things differ:

1. Where theirs is fused (GPT-2, NeoX: q, k and v are one matrix) it has one A. Read, each of ours
   gets a copy, which trains on its own. Written, theirs has the ranks of all three side by side and
   a B of blocks, which `rank_pattern` says, and which is cut again when it is read.
2. Scales are ours to keep, alpha is theirs: alpha = s·r, and `use_rslora` is always written false.
3. A reward model's head is `score.weight`, without the bias: that stands in the metadata of the
   safetensors file, as others have no place for it.

What it does not do: merged models (`models.lora.merge`, then `folder.py`), adapters of embeddings
and heads, dropout (read and left out: it is no part of what an adapter computes).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlhf import sharding
from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import peft_fields, safetensors_file, shards
from jaxrlhf.hf.entries import Entry
from jaxrlhf.hf.families import FAMILIES, family_named, family_of
from jaxrlhf.hf.peft_fields import CONFIG, Setup
from jaxrlhf.hf.safetensors_file import DTYPES, Planned, SafetensorsFile
from jaxrlhf.hf.shards import listed
from jaxrlhf.hf.staging import write_json
from jaxrlhf.hf.weights import FLOATS, STORED
from jaxrlhf.models import lora
from jaxrlhf.models.config import TransformerConfig

WEIGHTS = "adapter_model.safetensors"
SCORE_BIAS = "jaxrlhf.score_bias"
_PREFIX, _SCORE = "base_model.model.", "base_model.model.score.weight"


class LoadedAdapter(NamedTuple):
    """What a PEFT folder holds, for `lora.attach`."""

    adapters: Any  # what trains
    scales: Any  # what does not: attach it to the base
    head: Any  # {"kernel", "bias"} of a reward model, else None
    base: str | None  # the name or path of the model it belongs to


class _Module(NamedTuple):
    """One projection of theirs in one layer."""

    name: str  # transformer.h.0.attn.c_attn
    kind: str  # attn.c_attn, the same in every layer
    entry: Entry
    ours: tuple[str, ...]  # q_proj, k_proj, v_proj


# ------------------------------------------------------------------ reading


def load_adapter(
    folder: str | Path,
    config: TransformerConfig,
    *,
    family: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    ignore_fields: tuple[str, ...] = (),
) -> LoadedAdapter:
    """The adapter of a folder for a model of `config`.

    Args:
      family: of the base, such as that it was loaded with; None is the first that fits.
      mesh: where the arrays go; None is the default device.
      ignore_fields: of adapter_config.json, that are known not to change what is computed.
    Raises:
      CheckpointError: damaged files, a field that we cannot honour, or tensors that are missing,
        surplus or mis-shaped: all of them are listed.
    """
    folder = Path(folder)
    setup = peft_fields.read(folder, ignore_fields)
    file = _open(folder)
    modules = _modules(config, family)
    wanted = _wanted(setup, file, modules)
    _check_tensors(setup, file, wanted, config)
    adapters: dict[str, Any] = {}
    scales: dict[str, Any] = {}
    for same in _by_kind(wanted).values():
        scale = _one(folder, same, setup.scale_of, "alpha_pattern")
        for name, a, b in _read_kind(folder, setup, file, same):
            adapters[name] = {lora.A: a, lora.B: b}
            scales[name] = {lora.SCALE: np.full(config.num_layers, scale, np.float32)}
    head = _read_head(file) if setup.scalar else None
    trees = {"blocks": adapters}, {"blocks": scales}, head and {"head": head}
    adapters, scales, head = (_placed(tree, mesh) for tree in trees)
    return LoadedAdapter(adapters, scales, head and head["head"], setup.base)


def module_targets(
    names: Sequence[str], config: TransformerConfig, *, family: str | None = None
) -> tuple[str, ...]:
    """Our projections for names of either side: "c_attn" of GPT-2 is q_proj, k_proj, v_proj.

    Raises:
      CheckpointError: a name that the model does not have.
    """
    modules = [module for module in _modules(config, family) if module.entry.layer == 0]
    found: list[str] = []
    for name in names:
        if name in (lora.ALL_LINEAR, *lora.PROJECTIONS):
            found.append(name)
            continue
        matched = [our for module in modules if _ends(module.name, name) for our in module.ours]
        if not matched:
            known = ", ".join(module.kind for module in modules)
            raise CheckpointError(f"targets: {name!r} is no projection of this model; {known} are")
        found += matched
    return tuple(dict.fromkeys(found))


# ------------------------------------------------------------------ writing


def save_adapter(
    folder: str | Path,
    config: TransformerConfig,
    params: Any,
    *,
    head: Any = None,
    family: str | None = None,
    base: str | None = None,
    dtype: str = "float32",
) -> None:
    """Write what `PeftModel.from_pretrained` loads; replaces an adapter that was there.

    Args:
      params: of a language model, with adapters and scales attached; the rest is not read.
      head: of a reward model, which makes this a sequence classifier.
      family: of the base; None is the first that fits.
      base: the name or path of the base, for adapter_config.json.
    Raises:
      CheckpointError: the disk refused.
    """
    folder, kinds = Path(folder), _by_kind(_modules(config, family))
    adapted = {name: leaf for name, leaf in params["blocks"].items() if lora.A in leaf}
    short, plans = _short_names(list(kinds)), []
    shapes: dict[str, tuple[int, float]] = {}
    for kind, same in kinds.items():
        if any(name in adapted for name in same[0].ours):
            rank, scale, planned = _plan_kind(same, adapted, dtype)
            shapes[short[kind]] = rank, scale * rank
            plans += planned
    metadata = {"format": "pt"}
    if head is not None:
        metadata[SCORE_BIAS] = repr(float(head["bias"]))
        kernel = np.asarray(head["kernel"])[None]
        plans.append(_planned(_SCORE, kernel, dtype))
    own = [_own_shape(leaf) for leaf in adapted.values()]
    values = peft_fields.written(shapes, own)
    values |= {
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        "modules_to_save": None if head is None else ["score"],
        "base_model_name_or_path": base,
        "fan_in_fan_out": next(iter(kinds.values()))[0].entry.out_last,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)  # written last: a folder that has it is whole
        temporary = folder / f".{WEIGHTS}.tmp"
        safetensors_file.write(temporary, plans, metadata)
        temporary.replace(folder / WEIGHTS)
        write_json(folder / CONFIG, values)
    except OSError as error:
        raise CheckpointError(f"{folder}: the adapter could not be written ({error})") from error


# ------------------------------------------------------------------ modules


def _modules(config: TransformerConfig, family: str | None) -> list[_Module]:
    """Every projection of every layer, in the family's order."""
    chosen = family_of(config) if family is None else family_named(family)
    found = []
    for entry in FAMILIES[chosen.name].entries(config):
        paths = [path.split("/") for path in entry.ours]
        if all(path[-1] == "kernel" and path[-2] in lora.PROJECTIONS for path in paths):
            name = entry.name.removesuffix(".weight")
            kind = name.split(f".{entry.layer}.", 1)[1]
            found.append(_Module(name, kind, entry, tuple(path[-2] for path in paths)))
    return found


def _by_kind(modules: Sequence[_Module]) -> dict[str, list[_Module]]:
    kinds: dict[str, list[_Module]] = {}
    for module in modules:
        kinds.setdefault(module.kind, []).append(module)
    return kinds


def _sizes(module: _Module) -> tuple[int, int]:
    """in, and out of all its parts together."""
    first, second = module.entry.shape
    return (first, second) if module.entry.out_last else (second, first)


def _names(module: _Module) -> tuple[str, str]:
    return tuple(f"{_PREFIX}{module.name}.lora_{letter}.weight" for letter in "AB")  # type: ignore[return-value]


def _ends(name: str, target: str) -> bool:
    """Whether a target of PEFT's list means this module."""
    return name == target or name.endswith(f".{target}")


# ------------------------------------------------------------------ from theirs to ours


def _open(folder: Path) -> SafetensorsFile:
    if not shards.stands(folder / WEIGHTS) and shards.stands(folder / "adapter_model.bin"):
        raise CheckpointError(
            f"{folder}: holds its adapter as a pickle (adapter_model.bin), which can run any code "
            "when it is read; convert it where it may run: "
            "PeftModel.from_pretrained(BASE, FOLDER).save_pretrained(NEW_FOLDER)"
        )
    return safetensors_file.open_file(shards.inside(folder, WEIGHTS))


def _wanted(setup: Setup, file: SafetensorsFile, modules: list[_Module]) -> list[_Module]:
    """The modules of every kind that the targets name, or that has a tensor."""
    kinds = {
        module.kind
        for module in modules
        if any(name in file.tensors for name in _names(module))
        or any(_ends(module.name, target) for target in setup.targets)
    }
    return [module for module in modules if module.kind in kinds]


def _check_tensors(setup, file, wanted: list[_Module], config: TransformerConfig) -> None:
    shapes = {}
    for module in wanted:
        rank, (d_in, d_out) = setup.rank_of(module.name), _sizes(module)
        shapes |= dict(zip(_names(module), ((rank, d_in), (d_out, rank)), strict=True))
    if setup.scalar:
        shapes[_SCORE] = (1, config.d_model)
    problems = [f"{name} is missing" for name in shapes if name not in file.tensors]
    for name, stored in file.tensors.items():
        if name not in shapes:
            problems.append(f"{name} is not part of an adapter of this model")
        elif stored.shape != shapes[name]:
            problems.append(f"{name} has shape {stored.shape}, {shapes[name]} was expected")
        elif stored.dtype not in FLOATS:
            problems.append(f"{name} is {stored.dtype}; only {', '.join(FLOATS)} can be read")
    if not wanted and not problems:
        problems = ["adapts no projection of this model"]
    if problems:
        raise CheckpointError(f"{file.path}: {listed(problems)}")


def _one(folder: Path, same: list[_Module], of: Callable[[str], Any], field: str) -> Any:
    """What all layers of a kind agree on, as stacked layers must."""
    found = {of(module.name) for module in same}
    if len(found) > 1:
        raise CheckpointError(
            f"{folder / CONFIG}: {field}: {same[0].kind} differs between layers; here all layers "
            "of a projection have the same"
        )
    return found.pop()


def _read_kind(folder, setup: Setup, file, same: list[_Module]):
    """`(our projection, A [L, in, r], B [L, r, out])` for each part of a kind."""
    rank = _one(folder, same, setup.rank_of, "rank_pattern")
    a_layers, b_layers = [], []
    for module in same:
        a, b = (np.asarray(safetensors_file.read(file, n), np.float32) for n in _names(module))
        a_layers.append(a.T)
        b_layers.append(module.entry.split(b.T if module.entry.out_last else b))
    a, ours = np.stack(a_layers), same[0].ours
    parts = [np.stack(layers) for layers in zip(*b_layers, strict=True)]
    blocks = _blocks(parts) if len(ours) > 1 and rank == len(ours) * setup.rank else None
    for index, name in enumerate(ours):
        rows = slice(None) if blocks is None else blocks[index]
        yield name, a[:, :, rows], parts[index][:, rows]


def _blocks(parts: list[np.ndarray]) -> list[slice] | None:
    """The rows of each part's own block, where every part is 0 outside of it."""
    count, rank = len(parts), parts[0].shape[1] // len(parts)
    own = [slice(index * rank, (index + 1) * rank) for index in range(count)]
    for part, rows in zip(parts, own, strict=True):
        if part.any() and np.delete(part, rows, axis=1).any():
            return None
    return own


def _read_head(file: SafetensorsFile) -> dict[str, Any]:
    text = file.metadata.get(SCORE_BIAS, "0.0")
    try:
        bias = np.float32(text)
    except ValueError:
        bias = np.float32(np.nan)
    if not np.isfinite(bias):
        raise CheckpointError(f"{file.path}: {SCORE_BIAS} = {text!r}: must be a finite number")
    kernel = np.asarray(safetensors_file.read(file, _SCORE), np.float32)[0]
    return {"kernel": kernel, "bias": bias}


def _placed(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
    tree = jax.tree.map(lambda leaf: np.array(leaf, np.float32), tree)
    if mesh is None or tree is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, sharding.tree_sharding(mesh, tree))


# ------------------------------------------------------------------ from ours to theirs


def _plan_kind(
    same: list[_Module], adapted: Mapping[str, Any], dtype: str
) -> tuple[int, float, list[Planned]]:
    """Their rank, the scale, and the tensors of one kind in every layer."""
    first = same[0]
    found = {n: jax.tree.map(np.asarray, adapted[n]) for n in first.ours if n in adapted}
    every = np.concatenate([leaf[lora.SCALE] for leaf in found.values()])
    if np.ptp(every):
        raise CheckpointError(f"{first.kind}: one scale for all its parts and layers is needed")
    factors = [leaf[lora.A] for leaf in found.values()]
    shared = len(found) == len(first.ours) and all(
        np.array_equal(factors[0], other) for other in factors[1:]
    )
    a = factors[0] if shared else np.concatenate(factors, axis=-1)
    rank = a.shape[-1]
    _, d_out = _sizes(first)
    width = d_out // len(first.ours) if len(first.ours) > 1 else d_out
    plans, start, parts = [], 0, []
    for name in first.ours:
        part = np.zeros((len(same), rank, width), np.float32)
        if name in found:
            own = found[name][lora.B]
            rows = slice(None) if shared else slice(start, start + own.shape[1])
            part[:, rows] = own
            start += own.shape[1]
        parts.append(part)
    for layer, module in enumerate(same):
        b = module.entry.join(*(part[layer] for part in parts))
        b = b.T if module.entry.out_last else b
        name_a, name_b = _names(module)
        plans += [_planned(name_a, a[layer].T, dtype), _planned(name_b, b, dtype)]
    return rank, float(every[0]), plans


def _planned(name: str, array: np.ndarray, dtype: str) -> Planned:
    stored = STORED[dtype]
    return Planned(name, stored, array.shape, lambda: array.astype(DTYPES[stored]))


def _own_shape(leaf: Mapping[str, Any]) -> tuple[int, float]:
    """Rank and alpha of one of ours."""
    rank = leaf[lora.A].shape[-1]
    return rank, float(leaf[lora.SCALE][0]) * rank


def _short_names(kinds: Sequence[str]) -> dict[str, str]:
    """The last part of each kind's name, as is the custom; more of it where two end alike."""
    last = [kind.rpartition(".")[2] for kind in kinds]
    return {k: short if last.count(short) == 1 else k for k, short in zip(kinds, last, strict=True)}
