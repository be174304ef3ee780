"""`jaxrlhf generate PATH`: answer a prompt, a file of prompts, or a person in the terminal.

    jaxrlhf generate my-model prompt="Why is the sky blue?"
    jaxrlhf generate my-model prompts.files=[prompts.jsonl] output=answers.jsonl
    jaxrlhf generate my-model                     # a conversation; /reset, /quit

Answers come token by token on stdout. A prompt is one turn of a conversation in the model's chat
template where it has one, and the beginning of a text where it has none; `chat` decides otherwise.
A conversation keeps its history; where that grows too long its oldest turns go, and a line says so.
An answer ends with the tokens that training ends it with, and those of generation_config.json.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from pydantic import Field

from jaxrlhf import inference, rewards, sharding
from jaxrlhf.config import Config
from jaxrlhf.data import chat, pipeline, preferences
from jaxrlhf.data.dialogue import Message
from jaxrlhf.errors import ConfigError, DataError
from jaxrlhf.hf import folder
from jaxrlhf.models import LM
from jaxrlhf.progress import console, progress
from jaxrlhf.recipes import blocks, rows, saved
from jaxrlhf.recipes.sample import SamplingConfig
from jaxrlhf.sampling import Sampling

UNFINISHED = "\ufffd"  # what the bytes of half a character decode to


class GenerateConfig(Config):
    """What is asked, and how it is answered."""

    path: str | None = Field(default=None, description="language model (folder or hub name)")
    prompt: str | None = Field(default=None, description="what is asked; null: a conversation")
    prompts: rows.PromptsConfig = Field(
        default=rows.PromptsConfig(), description="instead: prompts from files"
    )
    output: str | None = Field(default=None, description="the answers to them, as JSONL")
    chat: bool | None = Field(
        default=None,
        description="ask in a conversation, or continue a text; null: as the tokenizer has it",
    )
    system: str | None = Field(default=None, description="system message of a conversation")
    sampling: SamplingConfig = Field(
        default=SamplingConfig(response_length=256), description="how answers are drawn"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the answers")
    batch_size: int = Field(default=8, ge=1, description="prompts of files answered at a time")
    dtype: blocks.Dtype = Field(default="float32", description="compute dtype of the model")
    mesh: blocks.MeshConfig = Field(default=blocks.MeshConfig(), description="devices")


CONFIG = GenerateConfig
EXAMPLE = 'jaxrlhf generate my-model prompt="Why is the sky blue?" sampling.temperature=0'


class Answerer(NamedTuple):
    """A model that is ready to answer."""

    lm: LM
    params: Any
    weights: Any  # laid out for decoding
    tokenizer: Any
    sampling: Sampling

    def room(self) -> int:
        """Most tokens a prompt may have, if one token is to follow."""
        return self.lm.config.max_positions - 1


def run(config: GenerateConfig, *, ask: Callable[[str], str] = input) -> dict[str, Any]:
    """Answer; `ask` reads a line from a person, and raises EOFError at the end."""
    path = blocks.required("path", config.path)
    if config.prompt is not None and config.prompts.files:
        raise ConfigError("prompt, prompts.files: give one of the two")
    if bool(config.output) != bool(config.prompts.files):
        raise ConfigError("output, prompts.files: each needs the other")
    mesh = config.mesh.build(batch_size=config.batch_size if config.output else 0)
    model = load(config, path, mesh)
    conversing = chat.has_template(model.tokenizer) if config.chat is None else config.chat
    if config.output:
        return answer_files(config, model, mesh, conversing=conversing)
    if config.prompt is not None:
        text = answer(model, opening(config, config.prompt, conversing), key_of(config, 0))
        return {"response": text}
    return converse(config, model, conversing=conversing or config.chat is None, ask=ask)


def load(config: GenerateConfig, path: str, mesh: jax.sharding.Mesh) -> Answerer:
    """The model, and how it is asked."""
    lm, params, tokenizer, _ = saved.load_lm(path, mesh, dtype=config.dtype)
    stops = folder.load_generation(saved.base_of(saved.find(path))).get("eos_token_id", [])
    stops = stops if isinstance(stops, list) else [stops]
    known = [i for i in stops if isinstance(i, int) and 0 <= i < lm.config.vocab_size]
    ids = (*chat.stop_ids(tokenizer), *known)
    sampling = config.sampling.with_ids(
        stop_ids=tuple(dict.fromkeys(ids)), pad_id=tokenizer.pad_token_id
    )
    weights = None if config.output else inference.decode_weights(lm, params)
    return Answerer(lm, params, weights, tokenizer, sampling)


# One prompt.


def opening(config: GenerateConfig, prompt: str, conversing: bool) -> str | list[Message]:
    """A prompt as text, or as the first turn of a conversation."""
    if not prompt:
        raise ConfigError("prompt: is empty")
    if not conversing:
        if config.system:
            raise ConfigError("system: is for conversations; set chat: true")
        return prompt
    return [*beginning(config), {"role": "user", "content": prompt}]


def beginning(config: GenerateConfig) -> list[Message]:
    """What a conversation starts with."""
    return [{"role": "system", "content": config.system}] if config.system else []


def answer(model: Answerer, prompt: str | list[Message], key: jax.Array) -> str:
    """Print the answer as it is drawn, and return it."""
    tokens = chat.encode_prompt(model.tokenizer, prompt)
    if len(tokens) > model.room():
        raise ConfigError(
            f"prompt: is {len(tokens)} tokens long, the model reads {model.lm.config.max_positions}"
        )
    text = ""
    try:
        for more in in_text(model, drawn(model, tokens, key)):
            text += more
            print(more, end="", flush=True)
    finally:  # Ctrl-C too
        print(flush=True)
    return text


def drawn(model: Answerer, tokens: np.ndarray, key: jax.Array) -> Iterator[int]:
    """Tokens of the answer; at most as many as there is room for."""
    rows.check_ids(model.lm, model.tokenizer, tokens)
    left = model.lm.config.max_positions - len(tokens)
    sampling = model.sampling
    if left < sampling.max_new_tokens:
        most = min(sampling.min_new_tokens, left)
        sampling = dataclasses.replace(sampling, max_new_tokens=left, min_new_tokens=most)
    try:
        yield from inference.stream(model.lm, model.weights, tokens.tolist(), key, sampling)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def in_text(model: Answerer, tokens: Iterable[int]) -> Iterator[str]:
    """What each token adds to the text; a character comes when its last byte does."""
    decode, ids, said = rows.decoder(model.tokenizer), [], ""
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        if not text.endswith(UNFINISHED):
            yield text[len(said) :]
            said = text
    yield decode(ids)[len(said) :]


def key_of(config: GenerateConfig, number: int) -> jax.Array:
    """The key of the answer to prompt `number`."""
    return jax.random.fold_in(jax.random.key(config.seed), number)


# A conversation.


def converse(
    config: GenerateConfig, model: Answerer, *, conversing: bool, ask: Callable[[str], str]
) -> dict[str, Any]:
    """Until /quit or the end of input; Ctrl-C ends an answer, or at the prompt the conversation."""
    kind = "conversation" if conversing else "text to continue"
    console.print(
        f"{kind}; /reset forgets it, /quit or Ctrl-D ends it, Ctrl-C stops an answer",
        soft_wrap=True,
    )
    history, count = beginning(config), 0
    while True:
        try:
            said = ask("> ").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if said == "/quit":
            break
        if said == "/reset":
            history = beginning(config)
            console.print("forgotten")
            continue
        if said:
            history = turn(config, model, history, said, count, conversing=conversing)
            count += 1
    return {"answers": count}


def turn(
    config: GenerateConfig,
    model: Answerer,
    history: list[Message],
    said: str,
    number: int,
    *,
    conversing: bool,
) -> list[Message]:
    """One question and its answer; the history after it."""
    heard: list[str] = []
    asked = [*history, {"role": "user", "content": said}]
    try:
        prompt = shortened(model, asked, keep=len(beginning(config))) if conversing else said
        tokens = chat.encode_prompt(model.tokenizer, prompt)
        if len(tokens) > model.room():
            raise ConfigError(f"that is {len(tokens)} tokens, more than the model reads")
        for more in in_text(model, drawn(model, tokens, key_of(config, number))):
            heard.append(more)
            print(more, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        console.print("stopped")
    except (ConfigError, DataError) as error:  # a template that refuses, a control token
        console.print(f"{error}", markup=False)
        return history
    if not conversing:
        return history
    kept = prompt if isinstance(prompt, list) else asked
    return [*kept, {"role": "assistant", "content": "".join(heard).strip()}]


def shortened(model: Answerer, messages: list[Message], *, keep: int) -> list[Message]:
    """Without the oldest questions and answers, as many as it takes to leave room for an answer.

    The first `keep` messages stay, and so does the last.
    """
    least = min(model.sampling.max_new_tokens, model.lm.config.max_positions // 4)
    dropped = 0
    while len(messages) > keep + 2:
        tokens = chat.encode_prompt(model.tokenizer, messages)
        if len(tokens) + least <= model.lm.config.max_positions:
            break
        messages = [*messages[:keep], *messages[keep + 2 :]]
        dropped += 1
    if dropped:
        console.print(f"the {dropped} oldest answers are forgotten: the model reads no more")
    return messages


# Files.


def answer_files(
    config: GenerateConfig, model: Answerer, mesh: jax.sharding.Mesh, *, conversing: bool
) -> dict[str, Any]:
    """Write a row a prompt: prompt, response, and whether it ended by itself."""

    def begin(prompt: Any) -> Any:
        return opening(config, prompt, conversing) if isinstance(prompt, str) else prompt

    prompts, found = rows.prompts(model.tokenizer, config.prompts, field="prompts", begin=begin)
    rows.check_tokens(model.lm, model.tokenizer, prompts)
    rows.leave_room(model.lm, prompts, model.sampling, field="prompts")
    decode = rows.decoder(model.tokenizer)
    records: list[dict[str, Any]] = []
    with progress(len(prompts), "generate") as bar:
        for batch, valid in pipeline.in_order(prompts, batch_size=config.batch_size):
            placed = sharding.shard_batch(mesh, batch)
            keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(config.seed), row))(
                batch["row"]
            )
            made = inference.generate(
                model.lm,
                model.params,
                placed["prompt_tokens"],
                placed["prompt_mask"],
                keys,
                model.sampling,
            )
            view = rewards.Rollout(made.tokens, made.mask, made.prompt_length)
            texts, done = rewards.texts(view, decode)[1], np.asarray(made.finished)
            for i in np.flatnonzero(valid):
                prompt = found.at_row(int(batch["row"][i])).prompt
                records.append({"prompt": prompt, "response": texts[i], "complete": bool(done[i])})
            bar.advance(int(valid.sum()))
    output = Path(str(config.output))
    preferences.write_rows(output, records)
    return {"prompts": len(records), "output": str(output)}
