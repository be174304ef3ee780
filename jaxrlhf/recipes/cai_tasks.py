"""What the `cai` pipeline is about: its prompts, its texts, what people prefer, and who judges.

The helpdesk is a sandbox world: it writes every file, and its gold judges. With `kind: files` the
user names red-team prompts, helpful prompts and people's pairs; there is no judge then, and the
report says what can be said without one.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import preferences
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.errors import ConfigError
from jaxrlhf.evals.policy import Judge
from jaxrlhf.recipes.simulate_labels import WorldConfig
from jaxrlhf.sandbox.helpdesk import Helpdesk


class CAITask(NamedTuple):
    """The files of a task; an empty tuple where it has none."""

    red_prompts: tuple[str, ...]
    helpful_prompts: tuple[str, ...]
    all_prompts: tuple[str, ...]
    test_prompts: tuple[str, ...] = ()
    tokenizer: str | None = None
    corpus: tuple[str, ...] = ()
    demonstrations: tuple[str, ...] = ()
    comparisons: tuple[str, ...] = ()
    helpful_pairs: tuple[str, ...] = ()
    harm_pairs: tuple[str, ...] = ()
    world: Helpdesk | None = None

    @property
    def judge(self) -> Judge | None:
        """The world's gold, where there is a world; also of each kind of prompt alone."""
        world = self.world
        if world is None:
            return None

        def judged(prompt: str, response: str) -> dict[str, float]:
            gold = world.gold(prompt, response)
            red = gold["red"]
            return gold | {"red_harm": red * gold["harm"], "benign_help": (1 - red) * gold["help"]}

        return lambda prompts, responses: list(map(judged, prompts, responses))


class HelpdeskTask(Config):
    """The helpdesk: how much of everything its world writes."""

    world: WorldConfig = Field(default=WorldConfig(name="helpdesk"), description="the world")
    documents: int = Field(default=60_000, ge=1, description="pre-training documents")
    demonstrations: int = Field(default=6_000, ge=1, description="helpful answers to imitate")
    lessons: int = Field(
        default=6_000, ge=0, description="lessons in revision among them, to keep that skill"
    )
    comparisons: int = Field(
        default=0, ge=0, description="comparisons for the feedback model to learn"
    )
    red_prompts: int = Field(default=2_048, ge=1, description="red-team prompts")
    helpful_prompts: int = Field(default=2_048, ge=1, description="benign prompts")
    test_prompts: int = Field(default=480, ge=1, description="held-out prompts of both kinds")

    def prepare(self, folder: Path, *, seed: int) -> CAITask:
        """Write the files (again, if need be: they are a function of the seed)."""
        world = self.world.build()
        if not isinstance(world, Helpdesk):
            raise ConfigError(
                f"task.helpdesk.world.name = {world.name!r}: has no constitution; helpdesk has one"
            )
        folder.mkdir(parents=True, exist_ok=True)
        tokenizers.word_tokenizer(world.words()).save_pretrained(folder / "tokenizer")
        enough = 4 * (self.red_prompts + self.helpful_prompts) + 64  # a third of them are red
        drawn = world.prompts(enough, seed=seed)
        red = [row for row in drawn if row["red"]][: self.red_prompts]
        benign = [row for row in drawn if not row["red"]][: self.helpful_prompts]
        lessons = world.lessons(self.lessons, seed=seed)
        made = {
            "corpus": world.corpus(self.documents, seed=seed),
            "demonstrations": [*world.demonstrations(self.demonstrations, seed=seed), *lessons],
            "comparisons": world.comparisons(self.comparisons, seed=seed),
            "red_prompts": red,
            "helpful_prompts": benign,
            # One after the other: whoever takes the first of them has both kinds.
            "all_prompts": [row for pair in zip(red, benign, strict=False) for row in pair],
            "test_prompts": world.prompts(self.test_prompts, seed=seed, split="test"),
        }
        kinds = {row["prompt"]: row["red"] for row in made["test_prompts"]}
        if min(sum(kinds.values()), len(kinds) - sum(kinds.values())) < 2:
            raise ConfigError(
                f"task.helpdesk.test_prompts = {self.test_prompts}: the report needs at least two "
                "red-team and two benign ones; take more"
            )
        files = {}
        for name, rows in made.items():
            preferences.write_rows(folder / f"{name}.jsonl", rows)
            files[name] = (str(folder / f"{name}.jsonl"),)
        return CAITask(tokenizer=str(folder / "tokenizer"), world=world, **files)


class FilesTask(Config):
    """Files of your own, in the formats that every command reads."""

    red_prompts: tuple[str, ...] = Field(default=(), description="prompts that ask for harm")
    helpful_prompts: tuple[str, ...] = Field(default=(), description="prompts of any other kind")
    test_prompts: tuple[str, ...] = Field(default=(), description="held-out prompts for the report")
    demonstrations: tuple[str, ...] = Field(
        default=(), description="helpful answers to fine-tune on; unused with helpful: null"
    )
    comparisons: tuple[str, ...] = Field(
        default=(), description="examples for the feedback model; unused with feedback: null"
    )
    helpful_pairs: tuple[str, ...] = Field(
        default=(), description="people's preferences among helpful answers"
    )
    harm_pairs: tuple[str, ...] = Field(
        default=(), description="people's preferences for harmlessness, for arms that learn them"
    )

    def prepare(self) -> CAITask:
        for name in ("red_prompts", "helpful_prompts"):
            if not getattr(self, name):
                raise ConfigError(f"task.files.{name}: name at least one file")
        return CAITask(all_prompts=self.red_prompts + self.helpful_prompts, **self.model_dump())


class CAITaskConfig(Config):
    """Which task, and its settings."""

    kind: Literal["helpdesk", "files"] = Field(
        default="helpdesk", description="a sandbox world, or files of your own"
    )
    helpdesk: HelpdeskTask = Field(default=HelpdeskTask(), description="used with kind: helpdesk")
    files: FilesTask = Field(default=FilesTask(), description="used with kind: files")

    def prepare(self, folder: Path, *, seed: int) -> CAITask:
        """Write the task's files into `folder`, if they are to be written, and name them."""
        if self.kind == "files":
            return self.files.prepare()
        return self.helpdesk.prepare(folder, seed=seed)
