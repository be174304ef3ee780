"""The errors a user can cause, the exit code each one ends the command with, and "did you mean".

A `UserError` is printed as its message alone: no traceback, because nothing in the program is
broken. Everything else (a bug) keeps its traceback. Messages are written where they are raised;
each says where (file and line, or config field), the value, and the nearest valid choice. Any
module may import this one (but not `losses/`, which imports jax and chex only); it imports nothing.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right; the message says what and where."""

    exit_code: int = 2
    heading: str = "error:"
    """What the message is printed after."""


class ConfigError(UserError):
    """A config file or override is not valid: unknown key, wrong type, value out of range."""


class DataError(UserError):
    """A data file or row cannot be used: missing, empty, malformed, over-long."""


class CheckpointError(UserError):
    """A checkpoint or a model's folder cannot be read, or does not fit."""


class NonFiniteError(UserError):
    """A loss or metric became NaN or infinite; the last good checkpoint is kept."""

    exit_code = 3


class GuardError(UserError):
    """A guard stopped a run that was going wrong; its state is saved and a report is written."""

    exit_code = 4


class WaitingError(UserError):
    """People have been asked, and have not all answered: nothing went wrong, run it again later."""

    exit_code = 5
    heading = "waiting:"


def nearest(value: object, choices: Iterable[str]) -> str | None:
    """The choice most like `value`, or None where none is alike.

    >>> nearest("lineer", ["linear", "cosine"])
    'linear'
    """
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in reversed(choices)}
    found = difflib.get_close_matches(str(value).lower(), lowered, n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        ConfigError: naming `name`, the value, every choice and the nearest one.

    >>> one_of("lr_scheduler_type", "linear", ["linear", "cosine"])
    'linear'
    """
    choices = list(choices)
    if value in choices:
        return value
    guess = nearest(value, choices)
    hint = f"; did you mean {guess!r}?" if guess else ""
    raise ConfigError(f"{name} = {value!r}: must be one of {', '.join(choices)}{hint}")
