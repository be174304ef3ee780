"""The model card says what the model is, and its front matter is what the hub reads."""

import yaml

from jaxrlhf.hf.card import Card, text


def front_matter(card):
    return yaml.safe_load(text(card).split("---\n")[1])


def test_what_a_card_says():
    card = Card(
        kind="scalar",
        recipe="reward",
        config="seed: 0\nbatch_size: 8\n",
        base="owner/name@main",
        hub_base=True,
        data=("pairs.jsonl", "more.jsonl"),
        metrics={"accuracy": 0.7512345678, "pairs": 12, "a|b": "x\ny"},
        guards={"length": "rose by 3 %: passed"},
        note="Read this.",
    )
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "owner/name",
        "tags": ["jaxrlhf", "reward", "reward-model"],
    }
    whole = text(card)
    assert "Trained from `owner/name@main` by `jaxrlhf reward`. Read this." in whole
    assert "AutoModelForSequenceClassification.from_pretrained" in whole
    assert "- `pairs.jsonl`\n- `more.jsonl`" in whole
    assert "| accuracy | 0.751235 |\n| pairs | 12 |" in whole and "x y" in whole
    assert (
        "## Guards\n\n| guard | value |\n| --- | --- |\n| length | rose by 3 %: passed |" in whole
    )
    assert whole.endswith("## Config\n\n```yaml\nseed: 0\nbatch_size: 8\n```\n")


def test_a_card_without_much_to_say():
    card = Card(kind="lm", recipe="sft", config="{}")
    assert front_matter(card)["tags"] == ["jaxrlhf", "sft"]
    assert "base_model" not in front_matter(card)
    whole = text(card)
    assert "Trained from scratch by `jaxrlhf sft`." in whole and "Not named." in whole
    assert "## Metrics" not in whole and "## Guards" not in whole
    local = Card(kind="lm", recipe="sft", config="{}", base="run/sft/model")
    assert "base_model" not in front_matter(local)  # the hub would look for a repository


def test_what_others_would_compute_wrongly_is_not_recommended_to_them():
    whole = text(Card(kind="scalar", recipe="reward", config="{}", others_can_load=False))
    assert "from_pretrained" not in whole and "load_scalar" in whole
