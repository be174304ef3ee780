"""Gradients of the mean cross-entropy against torch's, every parameter.

torch's gradients are saved as if they were the weights of a folder, and loaded by our loader: so
they land where they belong without a second name map.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: bash scripts/test.sh --parity")

import torch_models

from jaxrlhf.hf import folder
from jaxrlhf.inference import token_stats
from jaxrlhf.losses import log_probs, masked


@pytest.mark.parametrize("chunk_size", [None, 16])
@pytest.mark.parametrize("case", ["gpt2", "gpt_neox", "llama_yarn", "qwen3", "gemma2", "olmo2"])
def test_gradient_of_the_mean_cross_entropy(loaded, case, chunk_size, tmp_path):
    _, lm, params = loaded(case)
    tokens = torch_models.some_tokens(3, 20, seed=4)
    mask = np.arange(20) < np.array([20, 17, 13])[:, None]
    loss, expected = torch_gradient(case, tokens, mask, tmp_path)

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(params):
        hidden = log_probs.shift(lm.hidden(params, jnp.array(tokens), jnp.array(mask)))
        stats = token_stats(lm, params, hidden, jnp.array(tokens), chunk_size=chunk_size)
        return -masked.mean(stats.log_probs, jnp.array(mask).at[:, 0].set(False))

    found_loss, found = value_and_grad(params)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    total = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(expected)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        reference = expected
        for part in path:
            reference = reference[part.key]
        difference = np.linalg.norm(np.asarray(leaf - reference))
        # 1e-4 of the leaf; a gradient that is 0 but for rounding (a bias of all keys) of the whole
        size = max(np.linalg.norm(np.asarray(reference)), 1e-3 * total)
        assert difference < 1e-4 * size, (jax.tree_util.keystr(path), difference, size)


def torch_gradient(case, tokens, mask, path):
    """The loss, and the gradient as a tree like our parameters."""
    model = copy.deepcopy(torch_models.torch_model(case))
    labels = torch.tensor(np.where(mask, tokens, -100))
    loss = model(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(mask, dtype=torch.long),
        labels=labels,
    ).loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    torch_models.save(case, path, model)
    return loss.item(), folder.load_lm(path).params
