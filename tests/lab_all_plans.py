"""`jaxrlhf lab all` with experiments that only say what they are given."""

import contextlib
import importlib
from pathlib import Path
from typing import Any
from unittest import mock

from config_probes import new_folder

from jaxrlhf.recipes import RECIPES, lab_all

SUMMARIES = {"lab sign-flip": {"rules": 15, "failed": 2, "verdict": "FAIL"}}


def observed(*overrides: str) -> dict[str, Any]:
    """What experiments were given, the verdicts and the page; `lab queries` breaks off."""
    given: dict[str, Any] = {}

    def stand_in(name: str) -> Any:
        def run(config: Any) -> dict[str, Any]:
            given[name] = config.model_dump(mode="json")
            if name == "lab queries":
                raise RuntimeError("no luck")
            pictures = Path(config.results)
            pictures.mkdir(parents=True)
            (pictures / "curve.png").write_bytes(b"")
            return SUMMARIES.get(name, {})

        return run

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(new_folder()))
        for name in lab_all.NAMES:
            module = importlib.import_module(RECIPES[f"lab {name}"].module)
            stack.enter_context(mock.patch.object(module, "run", stand_in(f"lab {name}")))
        verdicts = lab_all.run(lab_all.CONFIG.load(None, overrides))
        page = next(Path().rglob("pages/index.md")).read_text()
    return {"given": given, "verdicts": verdicts, "page": page}


def probe(*overrides: str) -> str:
    """What a field changes: what experiments are given."""
    return repr(observed(*overrides)["given"])
