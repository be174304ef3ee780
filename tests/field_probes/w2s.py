"""Probes of classifiers and of weak-to-strong experiments."""

import recipe_probes as recipes
import w2s_stages
from field_probes.training import HELD_OUT
from probing import Probe, of, p


def loss(*change: str, base: tuple[str, ...] = ()) -> Probe:
    """A hyper-parameter of a weak-to-strong loss."""
    full = tuple(f"loss.{text}" for text in change), tuple(f"loss.{text}" for text in base)
    return Probe(recipes.part("classify", "update"), *full)


def w2s(*change: str, base: tuple[str, ...] = ()) -> Probe:
    return Probe(w2s_stages.observed, change, base)


FILES = ("task.kind=files",)
THEIRS = "supervisors={words: {kind: column, column: theirs}}"
FLIPS = "supervisors={words: {kind: flips, of: [one]}, one: {}, two: {penalty: 9}}"
TEACHER = "supervisors={words: {kind: model, size: student}, first: {}}"
ANSWERS = ("task.kind=answers", TEACHER)
CHAIN = "supervisors={words: {kind: model, size: student, of: [first]}, first: {}}"
THREE = "losses={naive: {loss: cross_entropy}, mended: {}, product: {loss: product}}"
EVERY_LOSS = "grids={main: {losses: [naive, mended, product]}}"
JUDGED = (THREE, EVERY_LOSS, "rule={min_passes: 1, min_gain: -9}")


# Groups: (class, field) -> probe. The change is an override of the class itself.

GROUPS: dict[tuple[str, str], Probe] = {
    ("LossConfig", "loss"): loss("loss=product"),
    ("LossConfig", "max_weight"): loss("max_weight=0.75"),
    ("LossConfig", "ramp_share"): loss("ramp_share=0.2"),
    ("LossConfig", "threshold"): loss("threshold=rank"),
    ("LossConfig", "positive_share"): loss("positive_share=half"),
    ("LossConfig", "balance_labels"): loss("balance_labels=true"),
    ("LossConfig", "recent_predictions"): loss("recent_predictions=16", base=("loss=rolling",)),
    ("LossConfig", "window_radius"): loss("window_radius=0.15", base=("loss=window",)),
    ("LossConfig", "label_power"): loss("label_power=0.5", base=("loss=product",)),
    ("LossConfig", "own_power"): loss("own_power=0.5", base=("loss=product",)),
    ("W2STaskConfig", "kind"): w2s("task.kind=files"),
    ("CaravanTask", "documents"): w2s("task.sandbox.documents=5"),
    ("CaravanTask", "first"): w2s("task.sandbox.first=41"),
    ("CaravanTask", "second"): w2s("task.sandbox.second=21"),
    ("CaravanTask", "test"): w2s("task.sandbox.test=41"),
    ("FilesTask", "reads"): w2s("task.files.reads=pairs", base=FILES),
    ("FilesTask", "train"): w2s("task.files.train=[nowhere.jsonl]", base=FILES),
    ("FilesTask", "test"): w2s("task.files.test=[nowhere.jsonl]", base=FILES),
    ("FilesTask", "columns"): w2s("task.files.columns={label: other}", base=FILES),
    ("FilesTask", "classes"): w2s(
        "task.files.classes=3", base=(*FILES, "losses.mended.threshold=argmax")
    ),
    ("FilesTask", "first_share"): w2s("task.files.first_share=0.25", base=FILES),
    ("FilesTask", "limit"): w2s("task.files.limit=20", base=FILES),
    ("FilesTask", "max_words"): w2s("task.files.max_words=4", base=(*FILES, "task.files.limit=20")),
    ("AnswersTask", "first_share"): w2s("task.answers.first_share=0.25", base=ANSWERS),
    ("FilesTask", "corpus"): w2s("task.files.corpus=[plain.txt]", base=FILES),
    ("SizeConfig", "path"): w2s("sizes={student: {path: theirs}}"),
    ("SizeConfig", "max_steps"): w2s("sizes={student: {max_steps: 7}}"),
    ("SizeConfig", "learning_rate"): w2s("sizes={student: {learning_rate: 0.5}}"),
    ("SupervisorConfig", "kind"): w2s(FLIPS.replace("flips", "rule"), base=(FLIPS,)),
    ("SupervisorConfig", "size"): w2s(TEACHER.replace("student", "other"), base=(TEACHER,)),
    ("SupervisorConfig", "of"): w2s(FLIPS.replace("[one]", "[two]"), base=(FLIPS,)),
    ("SupervisorConfig", "loss"): w2s(CHAIN.replace("of:", "loss: mended, of:"), base=(CHAIN,)),
    ("SupervisorConfig", "column"): w2s(THEIRS.replace("theirs", "other"), base=(*FILES, THEIRS)),
    ("SupervisorConfig", "draw"): w2s("supervisors={words: {draw: 1}}"),
    ("SupervisorConfig", "penalty"): w2s("supervisors={words: {penalty: 1}}"),
    ("GridConfig", "seeds"): w2s("grids={main: {seeds: [1]}}"),
    ("GridConfig", "supervisors"): w2s(
        "grids={main: {supervisors: [first]}}", base=("supervisors={words: {}, first: {}}",)
    ),
    ("GridConfig", "students"): w2s("grids={main: {students: [other]}}"),
    ("GridConfig", "losses"): w2s("grids={main: {losses: [mended]}}"),
    ("GridConfig", "tuning"): w2s("grids={main: {tuning: [probe]}}"),
    ("GridConfig", "learning_rates"): w2s("grids={main: {learning_rates: [0.5]}}"),
    ("GridConfig", "start"): w2s("grids={main: {start: [adapted]}}", base=("adapt={}",)),
    ("RuleConfig", "grid"): w2s("rule.grid=more", base=("grids={main: {}, more: {}}", "rule={}")),
    ("RuleConfig", "loss"): w2s("rule.loss=product", base=JUDGED),
    ("RuleConfig", "baseline"): w2s("rule.baseline=product", base=JUDGED),
    ("RuleConfig", "min_gain"): w2s("rule.min_gain=0.9", base=JUDGED),
    ("RuleConfig", "min_passes"): w2s("rule.min_passes=2", base=JUDGED),
}

# Fields of a recipe itself: (recipe, field) -> probe.

FIELDS: dict[tuple[str, str], Probe] = {
    ("classify", "group_by_length"): of("classify", "batch", "group_by_length=true"),
    ("classify", "gradient_accumulation_steps"): of(
        "classify", "update", "gradient_accumulation_steps=2"
    ),
    ("classify", "model_path"): of("classify", "params", "model_path=run/pretrain/model"),
    ("classify", "reads"): p(recipes.refused("classify"), "reads=pairs"),
    ("classify", "test_columns"): p(
        recipes.refused("classify"), "test_columns={label: other}", base=HELD_OUT["classify"]
    ),
    ("classify", "classes"): of("classify", "params", "classes=3", base=("loss.loss=product",)),
    ("classify", "max_length"): of("classify", "batch", "max_length=30"),
    ("classify", "over_long"): p(
        recipes.refused("classify"), "over_long=error", base=("max_length=4",)
    ),
    ("classify", "tuning"): of("classify", "params", "tuning=probe"),
    ("classify", "class_words"): of("classify", "params", "class_words=[pie, soup]"),
    ("classify", "pooling"): of("classify", "update", "pooling=mean"),
    ("classify", "validation_rows"): of("classify", "batch", "validation_rows=8"),
    ("classify", "predict"): p(recipes.refused("classify"), "predict=[nowhere.jsonl]"),
    ("w2s", "output_dir"): w2s("output_dir=elsewhere"),
    ("w2s", "results"): w2s("results=elsewhere"),
    ("w2s", "ceiling_half"): w2s("ceiling_half=first"),
    ("w2s", "pretrain_seed"): w2s("pretrain_seed=7"),
    ("w2s", "improve"): w2s("improve=main", base=ANSWERS),
}

# Groups of a recipe: (recipe, group) -> probe that one field of the group arrives.

PASSED_ON: dict[tuple[str, str], Probe] = {
    ("classify", "data"): of("classify", "batch", "data.limit=12"),
    ("classify", "loss"): loss("max_weight=0.75"),
    ("w2s", "task"): w2s("task.sandbox.world.seed=3"),
    ("w2s", "sizes"): w2s("sizes.student.model.d_model=32"),
    ("w2s", "supervisors"): w2s("supervisors.words.draw=2"),
    ("w2s", "losses"): w2s("losses.mended.max_weight=0.75"),
    ("w2s", "grids"): w2s("grids.main.seeds=[1]"),
    ("w2s", "rule"): w2s("rule={}"),
}
