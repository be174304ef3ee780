"""`jaxrlhf cai critique-revise`: answers that a model criticises and revises under a constitution.

    jaxrlhf cai critique-revise model_path=my-model constitution=default
        prompts.files=[red_team.jsonl] output_dir=runs/revisions

`chains.jsonl` has a row a prompt: response, and for each round the principle, the critique, the
revision and their log-probs; or why the row was discarded. `sft.jsonl` has the revisions to
fine-tune on, mixed with a helpful model's answers: prompt, completion. `prompts.jsonl` has the
prompts as a model trained on them knows them, to sample from. A run that was killed goes on at the
sample where it was. Source: Bai et al. 2022 (arXiv 2212.08073), section 3.
"""

from typing import Any, Literal

from pydantic import Field

from jaxrlhf.constitutional import texts
from jaxrlhf.constitutional.critique import critique_revise, discards, sft_rows
from jaxrlhf.data import formats, preferences
from jaxrlhf.recipes import constitutions, rows, stages
from jaxrlhf.recipes.constitutions import AskConfig


class CritiqueReviseConfig(AskConfig):
    """Sample, criticise, revise."""

    prompts: rows.PromptsConfig = Field(
        default=rows.PromptsConfig(max_length=256), description="what is answered and revised"
    )
    rounds: int = Field(default=4, ge=0, description="revisions of each answer")
    direct: bool = Field(default=False, description="revise without a critique")
    principles: int | None = Field(
        default=None, ge=1, description="use the first so many principles; null: all"
    )
    revisions: Literal["all", "last"] = Field(
        default="all", description="which revisions go into sft.jsonl"
    )
    helpful: tuple[str, ...] = Field(
        default=(),
        description="files of helpful answers for sft.jsonl: of `jaxrlhf sample`, or examples",
    )
    helpful_ratio: float | None = Field(
        default=None, ge=0, description="of those, how many for each revision; null: all"
    )


CONFIG = CritiqueReviseConfig
EXAMPLE = (
    "jaxrlhf cai critique-revise model_path=my-model prompts.files=[red_team.jsonl] "
    "constitution=default"
)


def run(config: CritiqueReviseConfig) -> dict[str, Any]:
    """Write the three files; the summary counts what was discarded, and why."""
    stage = stages.Stage(config)
    if summary := stage.summary():
        return summary
    constitution = constitutions.load(config).only(principles=config.principles)
    helpful = helpful_rows(config.helpful)
    model = constitutions.sampler(config)
    found, prompts = rows.prompts(model.tokenizer, config.prompts, field="prompts")
    asked = [prompts.at_row(int(row)).prompt for row in found.columns["row"]]

    def make(done):
        return critique_revise(
            model,
            asked,
            constitution,
            rounds=config.rounds,
            direct=config.direct,
            few_shot=config.few_shot,
            keep_unfinished=config.keep_unfinished,
            seed=config.seed,
            done=done,
        )

    items = [{"prompt": prompt} for prompt in asked]
    with constitutions.rows(stage, "chains.jsonl", items, constitution, make) as chains:
        discarded = discards(chains)
        examples = sft_rows(
            chains,
            constitution,
            which=config.revisions,
            helpful=helpful,
            helpful_ratio=config.helpful_ratio,
            seed=config.seed,
        )
        preferences.write_rows(stage.folder / "chains.jsonl", chains)
        preferences.write_rows(stage.folder / "sft.jsonl", examples)
        known = [{"prompt": texts.as_prompt(constitution, prompt)} for prompt in asked]
        preferences.write_rows(stage.folder / "prompts.jsonl", known)
        return stage.finish(
            {
                "prompts": len(chains),
                "discarded": sum(discarded.values()),
                "revisions": sum(row["source"] == "revision" for row in examples),
                "helpful": sum(row["source"] == "helpful" for row in examples),
                "reasons": discarded,
            }
        )


def helpful_rows(files: tuple[str, ...]) -> list[dict[str, Any]]:
    """`prompt` and `completion` of sampled answers, or of examples to imitate."""
    if not files:
        return []
    found = rows.load(files, limit=None, field="helpful")
    if "responses" not in found.columns:
        return [preferences.to_record(item) for item in formats.examples(found)]
    return [
        {"prompt": item.prompt, "completion": texts.as_answer(item.prompt, response)}
        for item in preferences.read_samples(found)
        for response in item.responses
    ]
