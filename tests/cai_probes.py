"""The commands of `jaxrlhf cai` on the files of `cai_tiny.py`; models are only stood in for.

For `test_config_effects.py`: a probe returns what the model was asked, what was written, and what
was said; a command that refuses its config returns the refusal.
"""

import contextlib
import importlib
from collections.abc import Callable
from unittest import mock

import cai_tiny
import http_model
import jax
import numpy as np
from config_probes import Overrides, content, new_folder, refusal

from jaxrlhf import inference
from jaxrlhf.constitutional.endpoint import Endpoint
from jaxrlhf.constitutional.served import Rehearsal
from jaxrlhf.losses.log_probs import TokenStats
from jaxrlhf.recipes import RECIPES
from jaxrlhf.recipes.sample import SamplingConfig
from jaxrlhf.recipes.server import ServerConfig

HELPFUL: Overrides = ("helpful=[helpful.jsonl]",)
HUMAN: Overrides = ("human=[pairs.jsonl]",)
SERVED: Overrides = ("server.url=http://localhost:1/v1", "server.model=m", "model_path=null")


def outcome(recipe: str) -> Callable[..., str]:
    """A probe: all that a command asks, writes (below its own `output_dir`) and returns."""
    module = importlib.import_module(RECIPES[recipe].module)

    def probe(*overrides: str) -> str:
        asked, said = [], []
        home = new_folder()
        base = (*cai_tiny.BASE[recipe], f"output_dir={home}/out")

        def run() -> None:
            said.append(module.run(module.CONFIG.load(None, (*base, *overrides))))

        with contextlib.chdir(cai_tiny.folder()), stand_ins(asked):
            said.append(refusal(run))
        for summary in said[:-1]:
            summary.pop("seconds", None)
        written = [
            (str(path.relative_to(home)), path.read_text())
            for path in sorted(home.rglob("*"))
            if path.suffix == ".jsonl"
        ]
        return repr((asked, written, said)).replace(str(home), "")

    return probe


@contextlib.contextmanager
def stand_ins(asked: list[str]):
    """Answers that depend on keys and tokens alone, of models and of endpoints."""

    def note(lm, params, tokens, mask, *others):
        places = [str(getattr(x, "sharding", "")) for x in jax.tree.leaves((params, tokens))]
        asked.append(content((params, tokens, mask)) + repr((places, lm.config, others)))

    def generate(lm, params, tokens, mask, keys, sampling):
        data = np.asarray(jax.random.key_data(keys)).astype(np.uint64)
        note(lm, params, tokens, mask, data.tolist(), sampling)
        words = 4 + (data.sum(axis=1)[:, None] + np.arange(3, dtype=np.uint64)) % 8
        whole = np.concatenate([np.asarray(tokens), words.astype(np.int32)], axis=1)
        drawn = np.full((len(words), 3), -0.5, np.float32)
        never = np.zeros(len(words), bool)
        return inference.Generation(whole, whole > 0, drawn, never)  # type: ignore[arg-type]

    def score(lm, params, tokens, mask, *, response_length):
        note(lm, params, tokens, mask, response_length)
        tokens = np.asarray(tokens)
        log_probs = -1 - (tokens @ np.arange(tokens.shape[1])) % 7 / 2
        found = np.repeat(log_probs[:, None], response_length, axis=1)
        return TokenStats(found, found)  # type: ignore[arg-type]

    def post(self, route, bodies, readable):
        asked.append(repr((self, route, bodies)))
        return [http_model.completion({" A": -0.5, " B": -1.0}) for _ in bodies]

    with (
        mock.patch.object(inference, "generate", generate),
        mock.patch.object(inference, "score", score),
        mock.patch.object(Endpoint, "post", post),
    ):
        yield


def pairs(*overrides: str) -> str:
    """What `cai judge` makes of other pairs."""
    return outcome("cai judge")(*(f"pairs.{text}" for text in overrides))


def served(*overrides: str) -> str:
    """What `cai label` asks an endpoint."""
    return outcome("cai label")(*SERVED, *(f"server.{text}" for text in overrides))


def server(*overrides: str) -> str:
    """The model behind an endpoint, and what asking it would cost; `test_served.py` asks one."""
    base = ("url=http://localhost:1/v1", "model=m", "price_read=1", "price_written=1")
    config = ServerConfig.load(None, (*base, *overrides))
    made = config.build(SamplingConfig(response_length=4), batch_size=2, seed=0)
    rehearsal, found = Rehearsal(made), []
    rehearsal.generate(["a" * 400] * 9, [(i,) for i in range(9)])
    error = refusal(lambda: found.append(config.estimated(rehearsal)))
    return repr((made, found, error))
