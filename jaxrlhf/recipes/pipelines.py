"""What pipelines share: stages run in order, each told what the whole pipeline has decided.

A pipeline is a config with `output_dir`, `seed` and what every stage follows (mesh, dtype, remat),
and a plan: stage name -> what it does. A stage's folder has its name. Which stages there are, and
what they need, is the pipeline's own business (`rlhf.py`, `cai.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrlhf.config import Config
from jaxrlhf.errors import ConfigError
from jaxrlhf.progress import console, table

SHARED = ("output_dir", "seed", "mesh", "dtype", "remat")

Plan = Mapping[str, Callable[[], dict[str, Any]]]


def run(root: Path, plan: Plan, chosen: Sequence[str]) -> dict[str, Any]:
    """Run the chosen stages of a plan in its order; the summary of the last one."""
    summary: dict[str, Any] = {}
    for number, (name, action) in enumerate(plan.items(), start=1):
        if name not in chosen:
            continue
        console.print(f"[bold]{number}/{len(plan)} {name}[/bold]  {root / name}")
        summary = action()
        show(name, summary)
    return summary


def stage(config: Any, name: str, settings: Any, *, follows: str = "", **empty: Any) -> Any:
    """The config of a stage: the pipeline's folder, seed and devices, and what is still empty.

    Args:
      config: the pipeline's; it has the fields of `SHARED` that `settings` has.
      name: of the stage, and of its folder.
      follows: the field of the pipeline that `settings` are, where it is not called `name`.
      empty: `a__b=value` for fields that are set where the user has not.
    Raises:
      ConfigError: `settings` has a field of its own that the whole pipeline decides.
    """
    refuse_own(follows or name, settings, {field: field for field in SHARED})
    given = {field: getattr(config, field) for field in SHARED}
    given["output_dir"] = str(Path(config.output_dir) / name)
    known = {field: x for field, x in given.items() if field in type(settings).model_fields}
    return filled(settings.model_copy(update=known), **empty)


def refuse_own(name: str, settings: Config, shared: Mapping[str, str]) -> None:
    """What the pipeline gives every stage (folder, seed, ...); a stage's own would be ignored.

    `shared`: field of the stage -> what is set instead.
    """
    for field, instead in shared.items():
        known = type(settings).model_fields.get(field)
        if known and getattr(settings, field) != known.default:
            raise ConfigError(
                f"{name}.{field}: set {instead} once, for the whole pipeline; its stages follow"
            )


def filled(settings: Any, **values: Any) -> Any:
    """A copy with `a__b=value` set wherever the field is still empty."""
    for path, value in values.items():
        head, _, rest = path.partition("__")
        old = getattr(settings, head)
        if rest:
            value = filled(old, **{rest: value})
        elif old:
            continue
        settings = settings.model_copy(update={head: value})
    return settings


def show(name: str, summary: Mapping[str, Any]) -> None:
    """A stage's headline figures."""
    rows = [[key, value] for key, value in summary.items() if not isinstance(value, dict | list)]
    table(name, ["figure", "value"], rows)
