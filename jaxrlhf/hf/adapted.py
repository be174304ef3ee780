"""A PEFT adapter's folder read as a model: its base is found, loaded, and the adapter merged in.

A low-rank update is what the folder holds, a whole model is what everybody else wants of it; so
`load_lm` and `load_scalar` here return what those of `folder.py` do. To train adapters, or to keep
base and adapter apart, use `peft_folder.load_adapter`.

What it does not do: write anything.
"""

from pathlib import Path
from typing import Any, Literal

import jax

from jaxrlhf.errors import CheckpointError
from jaxrlhf.hf import folder, hub, peft_fields, peft_folder
from jaxrlhf.hf.description import CONFIG, Description
from jaxrlhf.hf.folder import LoadedLM, LoadedScalar
from jaxrlhf.models import heads, lora, make_scalar_model

Dtype = Literal["float32", "bfloat16"]


def is_adapter(path: str | Path) -> bool:
    """Whether the folder holds an adapter rather than a model."""
    path = Path(path)
    return (path / peft_fields.CONFIG).is_file() and not (path / CONFIG).is_file()


def base_of(path: str | Path) -> Path:
    """The folder of the base that an adapter names: a hub name, a path, or one beside the adapter.

    Raises:
      CheckpointError: it names none, or there is none.
    """
    path = Path(path)
    name = peft_fields.read(path, ()).base
    if not name:
        raise CheckpointError(f"{path / peft_fields.CONFIG}: base_model_name_or_path is missing")
    beside = path / name
    try:
        return beside if (beside / CONFIG).is_file() else hub.folder_of(name)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: its base model: {error}") from None


def load_config(path: str | Path) -> Description:
    """What the base with the adapter is."""
    found = folder.load_config(base_of(path))
    return found._replace(kind="scalar") if peft_fields.read(Path(path), ()).scalar else found


def load_lm(
    path: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Dtype = "float32",
    param_dtype: Dtype = "float32",
    remat: bool = False,
) -> LoadedLM:
    """The base with the adapter merged. Arguments and errors as `folder.load_lm`."""
    if peft_fields.read(Path(path), ()).scalar:
        raise CheckpointError(f"{path}: adapts a reward model, a language model is needed")
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat}
    found = folder.load_lm(base_of(path), mesh=mesh, **options)
    adapter = peft_folder.load_adapter(path, found.lm.config, family=found.family, mesh=mesh)
    return found._replace(params=_merged(found.params, adapter, param_dtype))


def load_scalar(
    path: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Dtype = "float32",
    param_dtype: Dtype = "float32",
    remat: bool = False,
) -> LoadedScalar:
    """The same for a reward model; its base may be a language model, as PEFT's is.

    Arguments and errors as `folder.load_scalar`.
    """
    if not peft_fields.read(Path(path), ()).scalar:
        raise CheckpointError(f"{path}: adapts a language model, a reward model is needed")
    base = base_of(path)
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat}
    if folder.load_config(base).kind == "scalar":
        model, params, family = folder.load_scalar(base, mesh=mesh, **options)
        body = params["lm"]
    else:
        lm, body, family = folder.load_lm(base, mesh=mesh, **options)
        model, body = make_scalar_model(lm.config), heads.body(body)
    adapter = peft_folder.load_adapter(path, model.config, family=family, mesh=mesh)
    whole = {"lm": _merged(body, adapter, param_dtype), "head": adapter.head}
    return LoadedScalar(model, whole, family)


def _merged(base: Any, adapter: peft_folder.LoadedAdapter, param_dtype: Dtype) -> Any:
    whole = lora.merge(lora.attach(lora.attach(base, adapter.scales), adapter.adapters))
    return jax.tree.map(lambda leaf: leaf.astype(param_dtype), whole)
