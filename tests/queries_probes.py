"""`jaxrlhf queries` on the tiny pipeline's reward model and its reverse, for config probes."""

import contextlib
import functools
from unittest import mock

import jax
import micro
from config_probes import content, new_folder, refusal

from jaxrlhf import inference
from jaxrlhf.models import heads
from jaxrlhf.recipes import blocks, queries, saved

OTHER = f"{micro.scratch()}/reversed_reward"


@functools.cache
def reversed_reward() -> str:
    """A reward model that prefers what the tiny pipeline's does not."""
    path = str(micro.pipeline() / "run" / "reward" / "model")
    model, params, words, _ = saved.load_scalar(path, blocks.MeshConfig().build())
    saved.save_scalar(
        micro.scratch() / "reversed_reward", model, heads.affine(params, -2, 0), words
    )
    return OTHER


def asked(*overrides: str) -> str:
    """What the models are asked, what is written, and what is said."""
    home, calls, said = new_folder(), [], []
    score = inference.reward_scores

    def watched(model, params, tokens, mask):
        places = [str(getattr(x, "sharding", "")) for x in jax.tree.leaves(tokens)]
        calls.append((content((tokens, mask)), places, str(model.config)))
        return score(model, params, tokens, mask)

    base = (
        "pairs=[run/sample/samples.jsonl]",
        f"reward_models=[run/reward/model, {reversed_reward()}]",
        f"output_dir={home}/out",
        "max_length=40",
    )
    with (
        contextlib.chdir(micro.pipeline()),
        mock.patch.object(inference, "reward_scores", watched),
    ):
        said.append(refusal(lambda: queries.run(queries.CONFIG.load(None, (*base, *overrides)))))
    files = [(str(p.relative_to(home)), p.read_text()) for p in sorted(home.rglob("*.jsonl"))]
    return repr((calls, said, files)).replace(str(home), "")
