"""Small worlds whose right answers are programs: models learn in them, and never see the answers.

The protocol is in `protocol.py`; a world is one file and one line in `WORLDS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from jaxrlhf.errors import one_of
from jaxrlhf.sandbox.bistro import Bistro
from jaxrlhf.sandbox.caravan import Caravan
from jaxrlhf.sandbox.helpdesk import Helpdesk
from jaxrlhf.sandbox.protocol import World
from jaxrlhf.sandbox.quiz import Quiz

WORLDS: Mapping[str, Callable[..., World]] = {
    "bistro": Bistro,
    "caravan": Caravan,
    "helpdesk": Helpdesk,
    "quiz": Quiz,
}


def make_world(name: str, *, seed: int = 0, settings: Mapping[str, Any] | None = None) -> World:
    """The world called `name`, drawn from `seed`, with `settings` in place of its defaults.

    Raises:
        ConfigError: an unknown world or setting; the message names the nearest one.

    >>> make_world("bistro", seed=1, settings={"repeat_penalty": 2.0})
    Bistro(seed=1, illegal_penalty=1.0, repeat_penalty=2.0)
    """
    settings = settings or {}
    world = WORLDS[one_of("world", name, WORLDS)](seed=seed)
    known = [field.name for field in fields(world) if field.name != "seed"]  # type: ignore[arg-type]
    chosen = {one_of(f"setting of world {name}", key, known): settings[key] for key in settings}
    return WORLDS[name](seed=seed, **chosen)
