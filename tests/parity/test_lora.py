"""Adapters in PEFT's folders, against PEFT itself: what it computes, saved there and loaded here.

The base and the adapter are random in every number; PEFT starts B at zero, which hides mistakes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: bash scripts/test.sh --parity")
peft = pytest.importorskip("peft", reason="peft is not installed: bash scripts/test.sh --parity")

import torch_models
import transformers

from jaxrlhf.hf import folder, peft_folder
from jaxrlhf.inference import reward_scores
from jaxrlhf.models import Lora, lora

# PEFT asks transformers for something by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CASES = ["gpt2", "gpt_neox", "llama", "llama_biased", "mistral", "qwen2", "qwen3"]
CASES += ["gemma2", "gemma3_text", "olmo2", "smollm3"]
CASES = [case for case in CASES if case in torch_models.CASES]
TARGETS = {
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def their_adapter(model, case, task="CAUSAL_LM", **options):
    """A PEFT model whose adapter is random."""
    targets = TARGETS.get(torch_models.CASES[case][0], LLAMA)
    settings = {"r": 3, "lora_alpha": 5, "lora_dropout": 0.0, "task_type": task} | options
    config = peft.LoraConfig(target_modules=targets, fan_in_fan_out=case == "gpt2", **settings)
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                generator = torch.Generator().manual_seed(len(name) * 1000 + parameter.numel())
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return wrapped


def fresh(loaded, case, tmp_path):
    """A torch model of its own (PEFT changes it in place), our model, its parameters."""
    _, lm, params = loaded(case)
    folder.save_lm(tmp_path / "base", lm, params, family=family(case))
    return base_in(tmp_path), lm, params


def base_in(tmp_path, cls=transformers.AutoModelForCausalLM):
    return cls.from_pretrained(
        tmp_path / "base", attn_implementation="eager", dtype=torch.float32
    ).eval()


def family(case):
    return torch_models.CASES[case][0]


def texts():
    return torch_models.some_tokens(2, 24), np.arange(24) >= np.array([0, 5])[:, None]


def our_logits(lm, params, tokens, mask):
    return np.asarray(lm.logits(params, lm.hidden(params, jnp.array(tokens), jnp.array(mask))))


def our_adapter(base, spec, seed=0):
    rng = np.random.default_rng(seed)
    adapters = lora.init(spec, jax.random.key(0), base)
    return jax.tree.map(lambda x: jnp.array(rng.normal(0, 0.2, x.shape), jnp.float32), adapters)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_their_adapter_computes_the_same_here(loaded, case, rslora, tmp_path):
    model, lm, params = fresh(loaded, case, tmp_path)
    tokens, mask = texts()
    torch_models.forget(model)
    bare = torch_models.logits(model, tokens, mask)
    wrapped = their_adapter(model, case, use_rslora=rslora)
    torch_models.forget(model)
    expected = torch_models.logits(wrapped, tokens, mask)
    assert np.abs(expected - bare)[mask].max() > 0.05
    wrapped.save_pretrained(tmp_path / "adapter")
    found = peft_folder.load_adapter(tmp_path / "adapter", lm.config, family=family(case))
    assert found.base == str(tmp_path / "base")
    whole = lora.attach(lora.attach(params, found.scales), found.adapters)
    np.testing.assert_allclose(our_logits(lm, whole, tokens, mask)[mask], expected[mask], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_our_adapter_computes_the_same_there(loaded, case, tmp_path):
    """As an adapter in PEFT, merged by PEFT, and merged by us into an ordinary folder."""
    model, lm, params = fresh(loaded, case, tmp_path)
    spec, (tokens, mask) = Lora(rank=3, alpha=5.0), texts()
    whole = lora.attach(lora.frozen(spec, params), our_adapter(params, spec))
    expected = our_logits(lm, whole, tokens, mask)
    peft_folder.save_adapter(
        tmp_path / "adapter", lm.config, whole, family=family(case), base=str(tmp_path / "base")
    )
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    torch_models.forget(model)
    found = torch_models.logits(wrapped, tokens, mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)
    assert not missing(wrapped, tmp_path / "adapter")

    merged = wrapped.merge_and_unload()
    torch_models.forget(merged)
    theirs = torch_models.logits(merged, tokens, mask)
    folder.save_lm(tmp_path / "merged", lm, lora.merge(whole), family=family(case))
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", attn_implementation="eager", dtype=torch.float32
    ).eval()
    torch_models.forget(again)
    ours = torch_models.logits(again, tokens, mask)
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5)


def missing(wrapped, path):
    """Adapter tensors of the PEFT model that the folder does not hold: those would stay random."""
    import safetensors.numpy

    stored = set(safetensors.numpy.load_file(path / "adapter_model.safetensors"))
    return set(peft.get_peft_model_state_dict(wrapped)) ^ stored


@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_an_adapter_of_a_reward_model_goes_in_and_out(case, tmp_path):
    theirs = torch_models.torch_reward_model(case)
    theirs.save_pretrained(tmp_path / "base")
    tokens = torch_models.some_tokens(4, 16, seed=5)
    mask = np.arange(16) < np.array([16, 11, 7, 1])[:, None]
    tokens = tokens * mask  # 0 is the padding token, by which torch finds the end
    wrapped = their_adapter(theirs, case, task="SEQ_CLS")
    expected = torch_scores(wrapped, tokens, mask)
    wrapped.save_pretrained(tmp_path / "adapter")

    model, params, name = folder.load_scalar(tmp_path / "base")
    found = peft_folder.load_adapter(tmp_path / "adapter", model.config, family=name)
    body = lora.attach(lora.attach(params["lm"], found.scales), found.adapters)
    whole = {"lm": body, "head": found.head}
    scores = reward_scores(model, whole, jnp.array(tokens), jnp.array(mask))
    np.testing.assert_allclose(scores, expected, atol=1e-4)

    peft_folder.save_adapter(
        tmp_path / "ours", model.config, body, head=found.head, family=name, base="base"
    )
    base = base_in(tmp_path, transformers.AutoModelForSequenceClassification)
    base.config.pad_token_id = 0
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    np.testing.assert_allclose(torch_scores(again, tokens, mask), expected, atol=1e-5)


def test_ranks_of_single_projections_come_in(loaded, tmp_path):
    model, lm, params = fresh(loaded, "llama", tmp_path)
    options = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"mlp.up_proj": 9}}
    wrapped = their_adapter(model, "llama", **options)
    tokens, mask = texts()
    torch_models.forget(model)
    expected = torch_models.logits(wrapped, tokens, mask)
    wrapped.save_pretrained(tmp_path / "adapter")
    found = peft_folder.load_adapter(tmp_path / "adapter", lm.config, family="llama")
    whole = lora.attach(lora.attach(params, found.scales), found.adapters)
    np.testing.assert_allclose(our_logits(lm, whole, tokens, mask)[mask], expected[mask], atol=1e-4)


def torch_scores(model, tokens, mask):
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask, dtype=torch.long)
        )
    return out.logits[:, 0].numpy()
