"""`jaxrlhf classify`: a classifier of texts, or a judge of pairs, from true or a teacher's labels.

It starts from a language model, whole or with the body frozen (a linear probe). The labels may be
those of a weaker model, and the loss one that trusts the student more than them (`loss.loss`). What
it thinks of further files goes to `predicted/`, as files that the next student can learn from. A
judge of pairs is a reward model and is saved as one; a classifier's parameters are in its last
checkpoint.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import jax
import numpy as np
import pydantic
from pydantic import Field
from scipy import special

from jaxrlhf import inference, sharding
from jaxrlhf.algorithms import weak_to_strong as algorithm
from jaxrlhf.data import arrays, formats, labelled, pipeline, preferences
from jaxrlhf.data.arrays import Arrays
from jaxrlhf.data.rows import Rows
from jaxrlhf.errors import ConfigError, DataError
from jaxrlhf.evals import weak_to_strong as evals
from jaxrlhf.models import LM, Classifier, ScalarModel, heads, make_classifier, make_scalar_model
from jaxrlhf.optim import make_optimizer
from jaxrlhf.recipes import blocks, rows, saved, stages

Columns = dict[str, str]


class LossConfig(blocks.config_of(algorithm.Settings)):
    """What is learnt of weak labels."""


class ClassifyConfig(blocks.SupervisedConfig):
    """Training of a classifier."""

    model_path: str | None = Field(
        default=None, description="language model it starts from (folder or hub name)"
    )
    reads: Literal["texts", "pairs"] = Field(
        default="texts",
        description="texts with a label; or pairs of answers, with the probability that `chosen` "
        "is the better one as their label",
    )
    data: blocks.DataConfig = Field(
        default=blocks.DataConfig(), description="rows with `text` and `label`, or pairs"
    )
    test_columns: Columns | None = Field(
        default=None, description="data.columns of data.test, where true labels stand elsewhere"
    )
    classes: int = Field(default=2, ge=2, description="how many; pairs have 2")
    max_length: int = Field(default=128, ge=2, description="longest text, in tokens")
    over_long: Literal["truncate_left", "skip", "error"] = Field(
        default="truncate_left",
        description="longer texts lose their beginning, are left out, or stop the run",
    )
    tuning: Literal["full", "probe"] = Field(
        default="full", description="train all parameters, or the head alone (linear probe)"
    )
    class_words: tuple[str, ...] = Field(
        default=(),
        description="one word a class: the head starts as their rows of the output layer; none: "
        "as zeros",
    )
    pooling: heads.Pooling = Field(
        default="last", description="read the last token, or the mean over tokens"
    )
    loss: LossConfig = Field(default=LossConfig(), description="what is learnt of the labels")
    validation_rows: int = Field(
        default=0,
        ge=0,
        description="the last training rows are kept, to stop early by their labels",
    )
    predict: tuple[str, ...] = Field(
        default=(), description="files whose rows get probabilities, in predicted/"
    )

    @pydantic.model_validator(mode="after")
    def _classes_fit_the_loss(self) -> Self:
        check_classes(self.classes, self.loss, field="loss")
        return self


CONFIG = ClassifyConfig


def check_classes(classes: int, loss: LossConfig, *, field: str) -> None:
    """Refuse a loss that tells two classes apart where there are more."""
    if classes > 2 and blocks.settings_of(loss, algorithm.Settings).thresholds:
        raise ValueError(
            f"{field}: {classes} classes, and this loss tells two apart; take cross_entropy, "
            "entropic, product, or mended with threshold: argmax"
        )


class Student(NamedTuple):
    """A model of classes, of either kind."""

    model: Classifier | ScalarModel
    predict: algorithm.Predict
    init: Any  # (key, lm_params) -> params

    def probs(self, params: Any, rows: Arrays, *, batch_size: int, mesh: Any) -> np.ndarray:
        """Probabilities `[N, K]` of the classes of rows."""
        found = []
        for batch, valid in pipeline.in_order(rows, batch_size=batch_size):
            placed = sharding.shard_batch(mesh, batch)
            found.append(np.asarray(self._batch_probs(params, placed))[valid])
        return np.concatenate(found)

    def _batch_probs(self, params: Any, batch: dict[str, Any]) -> Any:
        if isinstance(self.model, Classifier):
            return inference.class_probs(self.model, params, batch["tokens"], batch["mask"])
        sides = (
            np.asarray(
                inference.reward_scores(
                    self.model, params, batch[f"{side}_tokens"], batch[f"{side}_mask"]
                )
            )
            for side in ("chosen", "rejected")
        )
        better = special.expit(np.subtract(*sides))
        return np.stack([1 - better, better], axis=1)


def run(config: ClassifyConfig) -> dict[str, Any]:
    """Train and predict; the summary has accuracy on the test rows."""
    stage = stages.TrainingStage(config)
    if summary := stage.summary():
        return summary
    mesh = config.mesh.build(batch_size=config.batch_size)
    base = blocks.required("model_path", config.model_path)
    lm, lm_params, tokenizer, family = saved.load_lm(
        base, mesh, dtype=config.dtype, remat=config.remat
    )
    rows.check_length(lm, config.max_length)
    train, kept = split(config, read(config, tokenizer, config.data.train, field="data.train"))
    rows.check_tokens(lm, tokenizer, train)
    test = None
    if config.data.test:
        columns = config.data.columns if config.test_columns is None else config.test_columns
        test = read(config, tokenizer, config.data.test, field="data.test", columns=columns)
    wanted = {name: whole(config, tokenizer, file) for name, file in named(config.predict).items()}
    student = make_student(config, lm, tokenizer)
    params = student.init(jax.random.key(config.seed), lm_params)
    frozen = None
    if config.tuning == "probe":
        frozen = {"lm": params.pop("lm")}
    steps = config.steps_for(len(train))
    method = algorithm.weak_to_strong(
        student.predict,
        make_optimizer(total_steps=steps, **config.optimizer.model_dump()),
        blocks.settings_of(config.loss, algorithm.Settings),
        total_steps=steps,
        micro_batches=config.gradient_accumulation_steps,
        frozen=frozen,
    )

    def probs(params: Any, some: Arrays) -> np.ndarray:
        united = {**(frozen or {}), **params}
        return student.probs(united, some, batch_size=config.batch_size, mesh=mesh)

    def evaluate(state: Any) -> dict[str, float]:
        found = {}
        for name, some in (("test", test), ("validation", kept)):
            if some is not None:
                found |= figures(f"eval/{name}", probs(state.params, some), some)
        return found

    state = stages.train(
        stage,
        method,
        params,
        config.batches(train),
        steps=steps,
        mesh=mesh,
        hooks=[stages.every(config.eval_steps, steps, evaluate, first=True)],
        shown=("loss", "agreement"),
    )
    for name, (source, some) in wanted.items():
        write(stage.folder / "predicted" / name, source, probs(state.params, some))
    done = {"steps": steps, "rows": len(train), **stage.last_metrics()}
    if isinstance(student.model, ScalarModel):
        united = {**(frozen or {}), **state.params}
        saved.save_scalar(stage.model_dir, student.model, united, tokenizer, family=family)
    return stage.finish(done)


def make_student(config: ClassifyConfig, lm: LM, tokenizer: Any) -> Student:
    """The untrained model of classes over a language model.

    Raises:
      ConfigError: settings that do not fit each other.
    """
    if config.reads == "pairs":
        if config.classes != 2 or config.class_words:
            raise ConfigError("classes, class_words: pairs have two outcomes and no words for them")
        scalar = make_scalar_model(lm.config, pooling=config.pooling)
        return Student(
            scalar,
            algorithm.of_pairs(scalar),
            lambda key, body: scalar.init(key, body, zero=True),
        )
    model = make_classifier(lm.config, classes=config.classes, pooling=config.pooling)
    tokens = [word_token(tokenizer, word) for word in config.class_words] or None
    if tokens and len(tokens) != config.classes:
        raise ConfigError(f"class_words: {len(tokens)} words for {config.classes} classes")
    return Student(
        model,
        algorithm.of_texts(model),
        lambda key, body: model.init(key, body, tokens=tokens),
    )


def word_token(tokenizer: Any, word: str) -> int:
    """The token of a word that is one token."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        what = f"{len(ids)} tokens" if len(ids) != 1 else "unknown"
        raise ConfigError(f"class_words: {word!r} is {what} to this tokenizer; take a word of one")
    return ids[0]


def read(
    config: ClassifyConfig,
    tokenizer: Any,
    files: Sequence[str],
    *,
    field: str,
    columns: Columns | None = None,
) -> Arrays:
    """Rows of some files as arrays with a `label` `[N, K]`."""
    found = rows.load(files, limit=config.data.limit, field=field)
    return to_arrays(config, tokenizer, found, columns=columns)


def to_arrays(
    config: ClassifyConfig,
    tokenizer: Any,
    found: Rows,
    *,
    columns: Columns | None = None,
    over_long: arrays.OverLong | None = None,
) -> Arrays:
    """Rows as arrays with a `label` `[N, K]`."""
    columns = config.data.columns if columns is None else columns
    shape: dict[str, Any] = {
        "length": config.max_length,
        "pad_id": tokenizer.pad_token_id,
        "over_long": over_long or config.over_long,
    }
    options: dict[str, Any] = {"columns": columns, "on_bad_row": config.data.on_bad_row}
    if config.reads == "pairs":
        read_pairs = formats.preferences(found, **options)
        encoded = rows.encode(tokenizer, read_pairs, data=config.data, field="data")
        made = arrays.pairs(encoded, **shape)
        better = made.columns["label"]
        label = np.stack([1 - better, better], axis=1)
        return replace(made, columns={**made.columns, "label": label})
    read_texts = labelled.labelled(found, classes=config.classes, **options)
    encoded = rows.encode(tokenizer, labelled.texts(read_texts), data=config.data, field="data")
    return arrays.labelled(encoded, labelled.probabilities(read_texts), **shape)


def split(config: ClassifyConfig, train: Arrays) -> tuple[Arrays, Arrays | None]:
    """Rows to train on, and the last ones, kept to look at."""
    kept = config.validation_rows
    if not kept:
        return train, None
    if kept >= len(train):
        raise ConfigError(f"validation_rows = {kept}: there are only {len(train)} training rows")
    cut, every = len(train) - kept, np.arange(len(train))
    return tuple(replace(train, columns=train.take(part)) for part in (every[:cut], every[cut:]))  # type: ignore[return-value]


def named(files: Sequence[str]) -> dict[str, str]:
    """File name -> file, of those to predict."""
    found = {Path(file).name: file for file in files}
    if len(found) != len(files):
        raise ConfigError("predict: two files of one name; what is predicted would be too")
    return found


def whole(config: ClassifyConfig, tokenizer: Any, file: str) -> tuple[Rows, Arrays]:
    """All rows of a file: none may be left out of what is predicted."""
    source = rows.load([file], limit=None, field="predict")
    made = to_arrays(config, tokenizer, source, over_long="truncate_left")
    if len(made) != len(source):
        raise DataError(
            f"{file}: every row is asked about, and not every one can be read: {made.skipped}; "
            "raise max_length, or leave such rows out first (w2s: task.files.max_words)"
        )
    return source, made


def write(path: Path, source: Rows, probs: np.ndarray) -> None:
    """The rows of a file, with a model's probabilities as their labels."""
    path.parent.mkdir(exist_ok=True)
    pairs = "chosen" in source.columns
    labels = [float(p[1]) if pairs else [float(x) for x in p] for p in probs]
    preferences.write_rows(
        path, [{**row, "label": x} for row, x in zip(source, labels, strict=True)]
    )


def figures(prefix: str, probs: np.ndarray, some: Arrays) -> dict[str, float]:
    """Accuracy and cross-entropy against the labels of rows."""
    labels = some.columns["label"]
    found = evals.compare(probs, labels, labels)
    return {f"{prefix}_accuracy": found.accuracy.estimate, f"{prefix}_loss": found.log_loss}
