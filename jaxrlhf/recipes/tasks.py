"""What the `rlhf` pipeline is about: where texts, prompts and preferences come from, who judges.

A task writes its files once and names them; everything after reads files. The sandbox is a world
of our own, whose gold reward labels and judges. The sentiment task is that of Ziegler et al. 2019:
real sentences, real labels, and a judge that has seen neither the reward model's labels nor it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.data import preferences, sources
from jaxrlhf.data import tokenizer as tokenizers
from jaxrlhf.data.rows import Rows, shorten
from jaxrlhf.errors import DataError
from jaxrlhf.evals.policy import Judge
from jaxrlhf.evals.sentiment import fit_judge
from jaxrlhf.recipes.simulate_labels import WorldConfig
from jaxrlhf.sandbox.protocol import generator, unit_hash

TEST_DOCUMENTS = 512


class Task(NamedTuple):
    """The files of a task; an empty tuple where it has none, and the stage needs its own."""

    tokenizer: str | None = None
    corpus: tuple[str, ...] = ()
    test_corpus: tuple[str, ...] = ()
    demonstrations: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    test_prompts: tuple[str, ...] = ()
    preferences: tuple[str, ...] = ()
    test_preferences: tuple[str, ...] = ()
    judge: Judge | None = None


class SandboxTask(Config):
    """A sandbox world: its corpus, demonstrations, prompts, and gold as the judge."""

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
            "test_corpus": world.corpus(TEST_DOCUMENTS, seed=seed + 1_000_000),
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


class SentimentTask(Config):
    """Continue the opening of a review so that it is positive (Ziegler et al. 2019, section 3.1).

    The labelled training sentences are halved by a hash of their text: one half, with the labelled
    phrases that stand in it alone, makes the reward model's pairs, the prompts and the
    demonstrations; the judge is fitted on the other. Held-out openings and test pairs are of the
    development sentences, which no stage is trained on. The language model reads phrases of both
    halves, without labels.
    """

    sst2: str = Field(
        default="../shared/data/sst2",
        description="folder of {train_sentences,dev_sentences,train_phrases}.jsonl.gz, whose rows "
        "have `sentence` and `label` (1: positive)",
    )
    texts: tuple[str, ...] = Field(
        default=(), description="further plain text for pre-training; made to look like SST-2"
    )
    opening_words: int = Field(default=4, ge=1, description="words of a sentence in its prompt")
    shortest_phrase: int = Field(
        default=4, ge=1, description="words; shorter phrases and sentences are not pre-trained on"
    )
    pair_phrases: bool = Field(
        default=True,
        description="pairs of phrases too, not of whole sentences alone; no phrase that also "
        "stands in a sentence of the judge",
    )
    pairs_per_text: int = Field(
        default=1, ge=1, description="random negative texts a positive one is preferred over"
    )

    def prepare(self, folder: Path, *, seed: int) -> Task:
        """Write the files, a function of the data and the seed, and fit the judge."""
        train, held_out = (_labelled(self.sst2, f"{name}_sentences") for name in ("train", "dev"))
        halves: dict[str, list[Labelled]] = {"reward": [], "judge": []}
        for row in train:
            halves[_half(row.text)].append(row)
        mine, judged = halves["reward"], halves["judge"]
        phrases = _labelled(self.sst2, "train_phrases")
        paired = [*mine, *(_phrases_of(mine, judged, phrases) if self.pair_phrases else ())]
        judge = fit_judge([row.text for row in judged], [row.label for row in judged])
        words = self.opening_words
        seen = {_opening(row.text, words) for row in mine}
        unseen = {_opening(row.text, words) for row in held_out} - seen
        made = {
            "corpus": [{"text": text} for text in self._corpus(phrases)],
            "demonstrations": [
                {"prompt": start, "completion": row.text[len(start) :]}
                for row in mine
                if (start := _opening(row.text, words))
            ],
            "prompts": [{"prompt": start} for start in sorted(seen - {""})],
            "test_prompts": [{"prompt": start} for start in sorted(unseen - {""})],
            "preferences": _pairs(paired, self.pairs_per_text, seed=seed),
            "test_preferences": _pairs(held_out, TEST_PAIRS, seed=seed),
        }
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for name, rows in made.items():
            if not rows:
                raise DataError(f"{self.sst2}: leaves no {name} (opening_words = {words})")
            preferences.write_rows(folder / f"{name}.jsonl", rows)
            files[name] = (str(folder / f"{name}.jsonl"),)
        return Task(judge=judge, **files)

    def _corpus(self, phrases: Sequence["Labelled"]) -> Iterator[str]:
        more = (s for file in self.texts for s in _sentences(sources.load_rows(file)))
        for text in (*(row.text for row in phrases), *more):
            if len(text.split()) >= self.shortest_phrase:
                yield text


TEST_PAIRS = 4  # a positive development sentence


class Labelled(NamedTuple):
    """A sentence or phrase and whether it is positive (1) or negative (0)."""

    text: str
    label: int


def _labelled(folder: str, name: str) -> list[Labelled]:
    rows = sources.load_rows(Path(folder).expanduser() / f"{name}.jsonl.gz")
    found = []
    for number, row in enumerate(rows):
        text, label = row.get("sentence"), row.get("label")
        if not isinstance(text, str) or label not in (0, 1):
            what = f"needs a text `sentence` and a `label` of 0 or 1, and has {shorten(row)}"
            raise DataError(f"{rows.where(number)}: {what}")
        found.append(Labelled(" ".join(text.split()), label))
    return found


def _half(sentence: str) -> str:
    return "reward" if unit_hash("sentiment half", sentence) < 0.5 else "judge"


def _phrases_of(
    mine: Sequence[Labelled], judged: Sequence[Labelled], phrases: Sequence[Labelled]
) -> Iterator[Labelled]:
    """Those that are part of a sentence of `mine` and of none of `judged`; whole ones left out."""
    ours, theirs = (_parts(row.text for row in rows) for rows in (mine, judged))
    whole = {row.text for row in mine}
    for row in phrases:
        if row.text in ours and row.text not in theirs and row.text not in whole:
            yield row


def _parts(sentences: Iterable[str]) -> set[str]:
    """Every run of words of every sentence."""
    found = set()
    for sentence in sentences:
        words = sentence.split()
        for start in range(len(words)):
            found.update(accumulate(words[start:], "{} {}".format))
    return found


def _opening(sentence: str, words: int) -> str:
    """The first words; nothing where fewer than two would be left to say."""
    parts = sentence.split()
    return " ".join(parts[:words]) if len(parts) >= words + 2 else ""


def _pairs(rows: Sequence[Labelled], count: int, *, seed: int) -> list[dict[str, str]]:
    """Each positive sentence before `count` random negative ones, no prompt."""
    rng = generator("sentiment pairs", seed)
    good = [row.text for row in rows if row.label == 1]
    bad = [row.text for row in rows if row.label == 0]
    return [
        {"chosen": text, "rejected": bad[int(i)]}
        for text in good
        for i in rng.choice(len(bad), count)
    ]


def _sentences(rows: Rows) -> Iterator[str]:
    """Sentences of plain text in SST-2's manner: lower-case, blanks around punctuation marks."""
    for row in rows:
        text = re.sub(r"(?<=[a-z)])\.(?=[A-Z])", ". ", row["text"]).lower()
        text = re.sub(r" @([-,.])@ ", r"\1", text)
        text = re.sub(r"([()\"?!;:]|[.,](?=\s|$)|n't\b|'(?:s|re|ve|ll|d|m)\b)", r" \1 ", text)
        text = " ".join(text.split())
        if text.startswith("="):  # a heading of WikiText
            continue
        yield from (s for s in re.split(r"(?<= [.?!]) ", text) if "<unk>" not in s)


class TaskConfig(Config):
    """Which task, and its settings."""

    kind: Literal["sandbox", "sentiment", "files"] = Field(
        default="sandbox",
        description="a world made by a program; positive continuations on SST-2; or files that the "
        "stages name themselves",
    )
    sandbox: SandboxTask = Field(default=SandboxTask(), description="used with kind: sandbox")
    sentiment: SentimentTask = Field(
        default=SentimentTask(), description="used with kind: sentiment"
    )

    def prepare(self, folder: Path, *, seed: int) -> Task:
        """Write the task's files into `folder` and name them."""
        if self.kind == "files":
            return Task()
        task = self.sandbox if self.kind == "sandbox" else self.sentiment
        return task.prepare(folder, seed=seed)
