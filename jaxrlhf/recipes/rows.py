"""From file names in a config to arrays: load, read as a format, tokenise, pad."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import arrays, chat, formats, sources
from jaxrlhf.data.arrays import Arrays
from jaxrlhf.data.columns import Content
from jaxrlhf.data.rows import Loaded, Rows
from jaxrlhf.errors import ConfigError
from jaxrlhf.models import LM, ScalarModel
from jaxrlhf.recipes.blocks import DataConfig
from jaxrlhf.sampling import Sampling


class PromptsConfig(Config):
    """Prompts from files."""

    files: tuple[str, ...] = Field(
        default=(), description="files or hub names with a column `prompt`"
    )
    columns: dict[str, str] = Field(default={}, description="our column name -> the file's")
    limit: int | None = Field(default=None, ge=1, description="rows read of each file; null: all")
    max_length: int = Field(default=64, ge=1, description="longer prompts, in tokens, are left out")


def load(files: Sequence[str], *, limit: int | None, field: str) -> Rows:
    """Rows of several files, one after another."""
    if not files:
        raise ConfigError(f"{field}: name at least one file")
    return Rows.concat([sources.load_rows(file, limit=limit) for file in files])


def read(
    data: DataConfig, files: Sequence[str], reader: Callable[..., Loaded], *, field: str
) -> Loaded:
    """Rows of a `DataConfig` in a format of `data.formats`."""
    rows = load(files, limit=data.limit, field=field)
    found = reader(rows, columns=data.columns, on_bad_row=data.on_bad_row)
    return found


def encode(tokenizer: Any, found: Loaded, *, data: DataConfig, field: str) -> Loaded:
    """Tokens of rows."""
    encoded = chat.encode_rows(tokenizer, found, on_bad_row=data.on_bad_row)
    return encoded


def pairs(
    tokenizer: Any,
    data: DataConfig,
    files: Sequence[str],
    *,
    max_length: int,
    over_long: arrays.OverLong = "skip",
    field: str,
) -> Arrays:
    """Preference pairs of some files as arrays."""
    found = read(data, files, formats.preferences, field=field)
    encoded = encode(tokenizer, found, data=data, field=field)
    return arrays.pairs(
        encoded, length=max_length, pad_id=tokenizer.pad_token_id, over_long=over_long
    )


def prompts(
    tokenizer: Any,
    config: PromptsConfig,
    *,
    field: str,
    begin: Callable[[Content], Content] | None = None,
) -> tuple[Arrays, Loaded]:
    """Prompts as left-padded arrays, and the prompts themselves (`at_row(row)`).

    `begin` makes of a prompt what the model is asked, where that is not the prompt itself.
    """
    rows = load(config.files, limit=config.limit, field=field + ".files")
    found = formats.prompts(rows, columns=config.columns)
    asked = found
    if begin:
        items = [dataclasses.replace(item, prompt=begin(item.prompt)) for item in found]
        asked = dataclasses.replace(found, items=items)
    encoded = chat.encode_rows(tokenizer, asked)
    padded = arrays.prompts(encoded, length=config.max_length, pad_id=tokenizer.pad_token_id)
    return _without_empty_columns(padded), found


def _without_empty_columns(prompts: Arrays) -> Arrays:
    """As wide as the longest prompt: every column costs time in every forward pass."""
    first = int(np.argmax(prompts.columns["prompt_mask"].any(axis=0)))
    columns = {name: x if x.ndim == 1 else x[:, first:] for name, x in prompts.columns.items()}
    return Arrays(columns, prompts.skipped)


def leave_room(lm: LM, prompts: Arrays, sampling: Sampling, *, field: str) -> None:
    """Refuse prompts after which the model has no positions left for an answer."""
    longest = int(prompts.columns["prompt_mask"].sum(axis=1).max())
    limit = lm.config.max_positions
    if longest + sampling.max_new_tokens > limit:
        raise ConfigError(
            f"{field}: a prompt of {longest} tokens leaves no room for sampling.response_length = "
            f"{sampling.max_new_tokens}: the model reads {limit} tokens (model.max_positions); "
            f"{field}.max_length leaves longer prompts out"
        )


def check_length(lm: LM | ScalarModel, length: int) -> None:
    """Refuse rows that are longer than the model."""
    limit = lm.config.max_positions
    if length > limit:
        raise ConfigError(
            f"max_length = {length}: the model reads at most {limit} tokens (model.max_positions)"
        )


def check_tokens(lm: LM | ScalarModel, tokenizer: Any, found: Arrays) -> None:
    """`check_ids` of all tokens of some rows."""
    for name, x in found.columns.items():
        if name.endswith("tokens"):
            check_ids(lm, tokenizer, x)


def check_ids(lm: LM | ScalarModel, tokenizer: Any, tokens: np.ndarray) -> None:
    """Refuse tokens that the model has no row for: its tokenizer was extended, say."""
    limit, highest = lm.config.vocab_size, int(tokens.max())
    if highest >= limit:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise ConfigError(
            f"token {token!r} is number {highest}, the model has {limit} rows; resize_vocabulary: "
            "true of `jaxrlhf sft` gives new tokens rows"
        )


def columns(found: Loaded) -> dict[str, list[Any]]:
    """The further columns of prompts, by row of the file, for reward rules on text."""
    names = {name for item in found for name in item.columns}
    table: dict[str, list[Any]] = {name: [None] * len(found.rows) for name in sorted(names)}
    for item, row in zip(found, found.index, strict=True):
        for name, value in item.columns.items():
            table[name][row] = value
    return table


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Token ids -> text without special tokens."""
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def take(rows: Arrays, count: int) -> Arrays:
    """The first `count` rows."""
    keep = np.arange(min(count, len(rows)))
    return Arrays(rows.take(keep), rows.skipped)
