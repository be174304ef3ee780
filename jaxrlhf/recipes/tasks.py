"""What the `rlhf` pipeline is about: where its texts, prompts and preferences come from, who judges.

A task writes its files once and names them; everything after reads files. The sandbox is a world
of our own, whose gold reward labels and judges.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import preferences
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.evals.policy import Judge
from jaxrlhf.recipes.simulate_labels import WorldConfig


class Task(NamedTuple):
    """The files of a task; an empty tuple where it has none, and the stage needs its own."""

    tokenizer: str | None = None
    corpus: tuple[str, ...] = ()
    demonstrations: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    test_prompts: tuple[str, ...] = ()
    preferences: tuple[str, ...] = ()
    test_preferences: tuple[str, ...] = ()
    judge: Judge | None = None


class SandboxTask(Config):
    """A sandbox world: its corpus, demonstrations, prompts, and gold as the judge."""

    kind: Literal["sandbox"] = Field(default="sandbox", description="a world made by a program")
    world: WorldConfig = Field(default=WorldConfig(), description="which world")
    documents: int = Field(default=20_000, ge=1, description="pre-training documents")
    demonstrations: int = Field(default=2_000, ge=1, description="fine-tuning examples")
    prompts: int = Field(default=4_000, ge=1, description="training prompts")
    test_prompts: int = Field(default=512, ge=1, description="held-out prompts")

    def prepare(self, folder: Path, *, seed: int) -> Task:
        """Write the files (again, if need be: they are a function of the seed)."""
        world = self.world.build()
        folder.mkdir(parents=True, exist_ok=True)
        tokenizers.word_tokenizer(world.words()).save_pretrained(folder / "tokenizer")
        made = {
            "corpus": world.corpus(self.documents, seed=seed),
            "demonstrations": world.demonstrations(self.demonstrations, seed=seed),
            "prompts": world.prompts(self.prompts, seed=seed),
            "test_prompts": world.prompts(self.test_prompts, seed=seed, split="test"),
        }
        files = {}
        for name, rows in made.items():
            preferences.write_rows(folder / f"{name}.jsonl", rows)
            files[name] = (str(folder / f"{name}.jsonl"),)

        def judge(prompts: Sequence[str], responses: Sequence[str]):
            return [world.gold(*pair) for pair in zip(prompts, responses, strict=True)]

        return Task(tokenizer=str(folder / "tokenizer"), judge=judge, **files)


class FilesTask(Config):
    """Real data: the stages name their own files, and nobody judges."""

    kind: Literal["files"] = Field(default="files", description="the stages name their files")

    def prepare(self, folder: Path, *, seed: int) -> Task:
        return Task()
