"""Folders of torch `transformers`, loaded: the same logits and the same greedy continuation.

Made by `tests/parity/make_golden.py`. `tests/parity` compares with torch itself, and more.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlhf.hf import folder
from jaxrlhf.inference import generate
from jaxrlhf.sampling import Sampling

CASES = sorted(path.parent.name for path in Path(__file__).parent.glob("*/expected.npz"))
FAMILIES = {
    *("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"),
    *("olmo2", "smollm3"),
}


@pytest.fixture(scope="module", params=CASES)
def golden(request):
    path = Path(__file__).parent / request.param
    loaded = folder.load_lm(path)
    return loaded.lm, loaded.params, np.load(path / "expected.npz")


def test_every_family_has_a_folder():
    assert set(CASES) >= FAMILIES


def test_logits_with_padding_on_either_side(golden):
    # f32 in two frameworks: sums in another order, three layers. Seen: 2e-5 at most.
    lm, params, expected = golden
    tokens = expected["tokens"]
    rows, columns = tokens.shape
    # the same rows with 0, 3 and 7 columns of padding before them, all in one batch of 27 columns
    before = np.repeat([0, 3, 7], rows)[:, None]
    padded = np.full((3 * rows, columns + 7), 5)
    mask = (np.arange(columns + 7) >= before) & (np.arange(columns + 7) < before + columns)
    padded[mask] = np.tile(tokens, (3, 1)).reshape(-1)

    @jax.jit
    def logits(params, tokens, mask):
        return lm.logits(params, lm.hidden(params, tokens, mask))

    found = np.asarray(logits(params, jnp.array(padded), jnp.array(mask)))
    found = found[mask].reshape(3, *expected["logits"].shape)
    np.testing.assert_allclose(found, np.tile(expected["logits"], (3, 1, 1, 1)), atol=1e-4)


def test_the_greedy_continuation_is_the_same_token_for_token(golden):
    lm, params, expected = golden
    prompts = np.tile(np.pad(expected["prompts"], ((0, 0), (3, 0))), (2, 1))
    rows = len(expected["prompts"])
    prompts[rows:] = np.roll(prompts[rows:], -3, axis=1)  # the other half padded on the right
    mask = prompts > 0
    assert mask.sum() == 2 * expected["prompts"].size
    sampling = Sampling(max_new_tokens=expected["continuation"].shape[1], temperature=0)
    keys = jax.random.split(jax.random.key(0), len(prompts))
    found = generate(lm, params, prompts, mask, keys, sampling).response_tokens
    np.testing.assert_array_equal(found, np.tile(expected["continuation"], (2, 1)))
