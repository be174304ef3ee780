"""What we write, loaded by torch `transformers`: language models and reward models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: bash scripts/test.sh --parity")

import torch_models
import transformers
from torch_models import CASES

from jaxrlhf.hf import folder
from jaxrlhf.inference import reward_scores

REWARDS = ["gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "smollm3"]


@pytest.mark.parametrize("case", CASES)
def test_a_language_model_goes_out_as_it_came_in(loaded, case, tmp_path):
    model, lm, params = loaded(case)
    folder.save_lm(tmp_path, lm, params, family=family(case), max_shard_size=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    tokens = torch_models.some_tokens(2, 24)
    mask = np.arange(24) >= np.array([0, 5])[:, None]
    torch_models.forget(model)
    expected = torch_models.logits(model, tokens, mask)
    found = torch_models.logits(again, tokens, mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-5)
    back = folder.load_lm(tmp_path)
    assert back.lm is lm and back.family == family(case)
    jax.tree.map(np.testing.assert_array_equal, back.params, params)


@pytest.mark.parametrize("case", REWARDS)
def test_a_reward_model_goes_in_and_out(case, tmp_path):
    theirs = torch_models.torch_reward_model(case)
    theirs.save_pretrained(tmp_path / "theirs")
    tokens = torch_models.some_tokens(4, 16, seed=5)
    mask = np.arange(16) < np.array([16, 11, 7, 1])[:, None]
    tokens = tokens * mask  # 0 is the padding token, by which torch finds the end
    expected = torch_scores(theirs, tokens, mask)
    assert np.std(expected) > 0.1

    model, params, _ = folder.load_scalar(tmp_path / "theirs")
    found = reward_scores(model, params, jnp.array(tokens), jnp.array(mask))
    np.testing.assert_allclose(found, expected, atol=1e-4)  # f32 in two frameworks

    folder.save_scalar(tmp_path / "ours", model, params, tokenizer=Ids(), family=family(case))
    again = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", dtype=torch.float32
    ).eval()
    np.testing.assert_allclose(torch_scores(again, tokens, mask), expected, atol=1e-5)


class Ids:
    """Enough of a tokenizer for `save_scalar`."""

    bos_token_id, eos_token_id, pad_token_id = None, None, 0

    def save_pretrained(self, path):
        """There is nothing to save."""


def family(case):
    return torch_models.CASES[case][0]


def torch_scores(model, tokens, mask):
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask, dtype=torch.long)
        )
    return out.logits[:, 0].numpy()
