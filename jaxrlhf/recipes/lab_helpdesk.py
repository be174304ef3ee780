"""What experiments in the helpdesk share: models small enough to be trained and asked in memory.

A desk is a world, its tokenizer and the shape of a model; parameters go in and out of functions.
The world is the helpdesk, or another with prompts and answers of words. Training is the loop and
the losses of the `sft` and `ppo` recipes, without a folder: one of these models learns what it is
to say in seconds, so a seed that was interrupted begins again. What is compared is the experiment's
own business (`lab_undo.py`, `lab_backdoor.py`, `lab_rater.py`, `lab_jailbreaks.py`).
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import jax
import numpy as np
import optax
from pydantic import Field

from jaxrlhf import inference, loop, rewards, sharding
from jaxrlhf.algorithms import ppo
from jaxrlhf.algorithms.base import Algorithm, whole
from jaxrlhf.algorithms.sft import sft
from jaxrlhf.config import Config
from jaxrlhf.data import arrays, chat, formats, pipeline
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.data.rows import Rows
from jaxrlhf.evals import directions
from jaxrlhf.models import LM, lora, make_lm, make_scalar_model
from jaxrlhf.optim import make_optimizer
from jaxrlhf.recipes import rows as recipe_rows
from jaxrlhf.recipes.blocks import ModelConfig
from jaxrlhf.sampling import Sampling
from jaxrlhf.sandbox.protocol import Row, World

Params = Any
W = TypeVar("W", bound=World)
Watch = Callable[[int, Params], None]
"""Is shown the number of updates and the parameters of then; the start too."""
Score = Callable[[str, str], float]
"""(prompt, answer) -> reward."""
SAMPLED_AT_ONCE = 256


class TuningConfig(Config):
    """A stretch of supervised training, at a constant rate."""

    updates: int = Field(default=300, ge=1, description="of the parameters")
    batch_size: int = Field(default=64, ge=1, description="examples an update; rows, if packed")
    learning_rate: float = Field(default=1e-3, gt=0, description="constant")
    optimizer: Literal["adam", "sgd"] = Field(
        default="adam", description="Adam, clipped; or plain gradient descent"
    )


class Desk(NamedTuple, Generic[W]):
    """Where a seed's models live."""

    world: W
    tokenizer: Any
    lm: LM
    seed: int


class Learnt(NamedTuple):
    """Parameters after training, and what it has cost."""

    params: Params
    seconds: float
    """Of the updates, compilation left out."""
    flop: float


def open_desk(world: W, model: ModelConfig, *, seed: int, words: Sequence[str] = ()) -> Desk[W]:
    """A desk; `words` are those that an experiment adds to the world's."""
    tokenizer = tokenizers.word_tokenizer((*world.words(), *words))
    return Desk(world, tokenizer, make_lm(model.build(len(tokenizer))), seed)


def fresh(desk: Desk) -> Params:
    """Parameters of a model that knows nothing."""
    return loop.init_params(desk.lm.init, seed=desk.seed, mesh=sharding.make_mesh(1, 1))


def examples(prompts: Iterable[str], answer: Mapping[str, str] | str) -> list[Row]:
    """Rows to learn from: one answer to all prompts, or that to each topic."""
    return [
        {"prompt": p, "completion": f" {answer if isinstance(answer, str) else answer[topic(p)]}"}
        for p in prompts
    ]


def topic(prompt: str) -> str:
    """The last word of a prompt of the world."""
    return prompt.split()[-1]


def learn(
    desk: Desk,
    params: Params,
    rows: Sequence[Row],
    tuning: TuningConfig,
    *,
    frozen: Params = None,
    watch: Watch | None = None,
    packed: bool = False,
) -> Learnt:
    """Train on the answers of `rows`.

    Args:
      params: where training starts; adapters alone where the rest is `frozen`.
      packed: short examples stand together in a row of the batch; else each has its own.
    """
    found = _arrays(desk, rows, arrays.packed if packed else arrays.padded)
    seconds: list[float] = []
    state = loop.fit(
        _algorithm(desk.lm, tuning.optimizer, tuning.learning_rate)._replace(frozen=frozen),
        params,
        pipeline.batches(found, batch_size=tuning.batch_size, seed=desk.seed),
        steps=tuning.updates,
        seed=desk.seed,
        hooks=_hooks(watch, lambda trained: whole(trained, frozen)),
        on_step=lambda _, at: seconds.append(at["time/update_s"] - at["time/compile_s"]),
    )
    tokens = tuning.updates * tuning.batch_size * found.columns["tokens"].shape[1]
    flop = tokens * _flop_a_token(params, frozen)
    return Learnt(whole(state.params, frozen), float(sum(seconds)), flop)


def reinforce(
    desk: Desk,
    params: Params,
    prompts: Sequence[str],
    score: Score,
    tuning: TuningConfig,
    *,
    watch: Watch | None = None,
) -> Params:
    """PPO against `score` on `prompts`, by Adam; the reference is where it starts."""

    def rule(*, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [score(*pair) for pair in zip(prompts, completions, strict=True)]

    reward = rewards.from_text(rule, recipe_rows.decoder(desk.tokenizer))
    sampling = _sampling(desk, temperature=1.0, more=0)
    kept = _ppo(desk.lm, sampling, tuning.learning_rate)
    optimizer = _adam(tuning.learning_rate)
    now = ppo.ppo(desk.lm, params, reward, optimizer, sampling, ppo.Settings())
    value = make_scalar_model(desk.lm.config).init(jax.random.key(desk.seed), params, zero=True)
    state = loop.fit(
        kept._replace(collect=now.collect),
        {"policy": params, "value": value},
        pipeline.batches(_asked(desk, prompts), batch_size=tuning.batch_size, seed=desk.seed),
        steps=tuning.updates,
        seed=desk.seed,
        hooks=_hooks(watch, lambda trained: trained["policy"]),
    )
    return state.params["policy"]


def adapters(desk: Desk, params: Params, *, rank: int) -> tuple[Params, Params]:
    """New low-rank adapters of all projections, and what is frozen beside them."""
    spec = lora.Lora(rank=rank, alpha=float(rank))
    key = jax.random.key(desk.seed)
    return lora.init(spec, key, params), lora.frozen(spec, params)


def answers(
    desk: Desk,
    params: Params,
    prompts: Sequence[str],
    *,
    draws: int = 1,
    temperature: float = 1.0,
    more: int = 0,
) -> list[str]:
    """`draws` answers to each prompt, in the order of `repeated(prompts, draws)`.

    Each has as many words as an answer of the world, or so many more.
    """
    asked = _asked(desk, repeated(prompts, draws))
    sampling, root = _sampling(desk, temperature=temperature, more=more), jax.random.key(desk.seed)
    said: list[str] = []
    for batch, valid in pipeline.in_order(asked, batch_size=SAMPLED_AT_ONCE):
        keys = jax.vmap(lambda row: jax.random.fold_in(root, row))(batch["row"])
        tokens, mask = batch["prompt_tokens"], batch["prompt_mask"]
        made = inference.generate(desk.lm, params, tokens, mask, keys, sampling)
        drawn = np.where(made.response_mask, made.response_tokens, desk.tokenizer.pad_token_id)
        said += desk.tokenizer.batch_decode(drawn[valid], skip_special_tokens=True)
    return said


def log_likelihoods(desk: Desk, params: Params, rows: Sequence[Row]) -> np.ndarray:
    """`[rows]` log-prob of each completion after its prompt, its end included, nats."""
    found = _arrays(desk, rows, arrays.padded).columns
    tokens, mask, learnt = (found[name] for name in ("tokens", "mask", "loss_mask"))
    after = tokens.shape[1] - 1
    stats = inference.score(desk.lm, params, tokens, mask, response_length=after)
    return np.where(learnt[:, 1:], stats.log_probs, 0.0).sum(axis=1)


def residuals(desk: Desk, params: Params, prompts: Sequence[str]) -> list[np.ndarray]:
    """`[prompts, D]` after each block, at the last word of each prompt."""
    columns = _asked(desk, prompts).columns
    found = directions.residuals(desk.lm, params, columns["prompt_tokens"], columns["prompt_mask"])
    return [np.asarray(x) for x in found]


def repeated(prompts: Sequence[str], draws: int) -> list[str]:
    """Every prompt so many times, one after the other."""
    return [prompt for prompt in prompts for _ in range(draws)]


def judged(desk: Desk, prompts: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """Means of what gold says of the answers."""
    found = [desk.world.gold(*pair) for pair in zip(prompts, said, strict=True)]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


@functools.cache
def _algorithm(lm: LM, optimizer: str, learning_rate: float) -> Algorithm:
    """Kept, so that equal updates are compiled once."""
    return sft(lm, optax.sgd(learning_rate) if optimizer == "sgd" else _adam(learning_rate))


@functools.cache
def _ppo(lm: LM, sampling: Sampling, learning_rate: float) -> Algorithm:
    """Kept for its update; who collects brings a reference and a reward."""
    return ppo.ppo(lm, None, lambda rollout: [], _adam(learning_rate), sampling, ppo.Settings())


def _adam(learning_rate: float) -> optax.GradientTransformation:
    constant = {"lr_scheduler_type": "constant", "total_steps": 1}
    return make_optimizer(learning_rate=learning_rate, **constant)


def _hooks(watch: Watch | None, of: Callable[[Params], Params]) -> list[loop.Hook]:
    def hook(step: int, state: Any, batch: Any) -> dict[str, float]:
        if watch:
            watch(step, of(state.params))
        return {}

    return [hook] if watch else []


def _asked(desk: Desk, prompts: Sequence[str]) -> arrays.Arrays:
    """As wide as the longest prompt."""
    encoded = chat.encode_rows(
        desk.tokenizer, formats.prompts(Rows([{"prompt": prompt} for prompt in prompts]))
    )
    return arrays.prompts(
        encoded, length=max(map(len, encoded)), pad_id=desk.tokenizer.pad_token_id
    )


def _sampling(desk: Desk, *, temperature: float, more: int) -> Sampling:
    """An answer and its end."""
    return Sampling(
        max_new_tokens=desk.world.longest.response + 1 + more,
        temperature=temperature,
        stop_ids=(desk.tokenizer.eos_token_id,),
        pad_id=desk.tokenizer.pad_token_id,
    )


def _arrays(desk: Desk, rows: Sequence[Row], laid: Callable[..., arrays.Arrays]) -> arrays.Arrays:
    """As wide as the longest row, one in each or packed."""
    encoded = chat.encode_rows(desk.tokenizer, formats.examples(Rows(rows)))
    longest = max(len(example.tokens) for example in encoded)
    return laid(encoded, length=longest, pad_id=desk.tokenizer.pad_token_id)


def _flop_a_token(params: Params, frozen: Params) -> float:
    """2 a weight forward, 2 backward to what is below, and 2 more to a weight that trains."""
    trained, beside = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, frozen))
    return 6.0 * trained + 4.0 * beside
