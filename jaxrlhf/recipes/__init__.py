"""The recipes: each wires a config to data, models, an algorithm and the loop.

The only package that knows everything. Modules are imported on demand, so `--help` is quick.
"""

from typing import NamedTuple


class Recipe(NamedTuple):
    """A command of the CLI, of one word or two. `module` has `CONFIG` and `run(config)`.

    `positional` is the field that a first word without "=" sets: `jaxrlhf inspect PATH`.
    """

    summary: str
    module: str
    positional: str | None = None


RECIPES: dict[str, Recipe] = {
    "rlhf": Recipe(
        "the whole pipeline: pre-train, fine-tune, sample, label, reward model, PPO, report",
        "jaxrlhf.recipes.rlhf",
    ),
    "sft": Recipe("pre-train or fine-tune a language model on text", "jaxrlhf.recipes.sft"),
    "sample": Recipe("draw K answers a prompt from models, to JSONL", "jaxrlhf.recipes.sample"),
    "simulate-labels": Recipe(
        "pairs of answers judged by a simulated labeller, to JSONL",
        "jaxrlhf.recipes.simulate_labels",
    ),
    "label": Recipe(
        "a local web page on which people compare answers",
        "jaxrlhf.recipes.label",
        positional="store",
    ),
    "convert-labels": Recipe(
        "pairs and verdicts from one format into another: ours, TRL, Label Studio, Argilla",
        "jaxrlhf.recipes.convert_labels",
    ),
    "reward": Recipe("train a reward model on preference pairs", "jaxrlhf.recipes.reward"),
    "ppo": Recipe("improve a policy by PPO against a reward", "jaxrlhf.recipes.ppo"),
    "rounds": Recipe(
        "rounds of feedback: sample, label, reward model, PPO, measure, and again",
        "jaxrlhf.recipes.rounds",
    ),
    "rounds seeds": Recipe(
        "one budget of labels in one round or split over several, some seeds; a page of results",
        "jaxrlhf.recipes.rounds_seeds",
    ),
    "queries": Recipe(
        "which pairs to ask about next: disagreement or expected information of reward models",
        "jaxrlhf.recipes.queries",
    ),
    "cai": Recipe(
        "constitutional AI: revise under a constitution, fine-tune, AI labels, PPO, report",
        "jaxrlhf.recipes.cai",
    ),
    "cai critique-revise": Recipe(
        "answers that a model criticises and revises under a constitution",
        "jaxrlhf.recipes.cai_critique_revise",
    ),
    "cai label": Recipe(
        "pairs of answers labelled by a model under a constitution", "jaxrlhf.recipes.cai_label"
    ),
    "cai judge": Recipe(
        "how well a model chooses between responses whose better one is known",
        "jaxrlhf.recipes.cai_judge",
    ),
    "cai seeds": Recipe(
        "run the cai recipe for several seeds: its rules, and a page of results",
        "jaxrlhf.recipes.cai_seeds",
    ),
    "seeds": Recipe(
        "run the rlhf recipe for several seeds; a table with intervals", "jaxrlhf.recipes.seeds"
    ),
    "classify": Recipe(
        "train a classifier, or a judge of pairs, on true or a teacher's labels",
        "jaxrlhf.recipes.classify",
    ),
    "w2s": Recipe(
        "weak-to-strong generalisation: grids of students of weaker teachers; tables and pictures",
        "jaxrlhf.recipes.w2s",
    ),
    "elo": Recipe(
        "ratings of models from a file of battles: Bradley-Terry with intervals, online Elo",
        "jaxrlhf.recipes.elo",
        positional="battles",
    ),
    "annotators": Recipe(
        "how reliable annotators are; soft labels from verdicts that disagree",
        "jaxrlhf.recipes.annotators",
        positional="labels",
    ),
    "rate-answers": Recipe(
        "ratings of the answers to a prompt, as soft labels or margins for a reward model",
        "jaxrlhf.recipes.rate_answers",
        positional="comparisons",
    ),
    "inspect": Recipe(
        "what a model's folder holds, whether it would load, and the memory to train it",
        "jaxrlhf.recipes.inspect_model",
        positional="path",
    ),
    "bench": Recipe(
        "how fast PPO is on this machine, by phase, on random weights of any shape",
        "jaxrlhf.recipes.bench",
    ),
    "generate": Recipe(
        "answer a prompt, a file of prompts, or a person in the terminal",
        "jaxrlhf.recipes.generate",
        positional="path",
    ),
    "eval": Recipe(
        "what a model prefers to say and what it refuses, on public files: a suite of evaluations",
        "jaxrlhf.recipes.evaluate",
        positional="path",
    ),
    "export": Recipe(
        "a checkpoint or a model as a Hugging Face folder",
        "jaxrlhf.recipes.export",
        positional="path",
    ),
    "lab all": Recipe(
        "every experiment of the laboratory, and one page about all of them",
        "jaxrlhf.recipes.lab_all",
    ),
    "lab overoptimise": Recipe(
        "gold and learned reward over sqrt(KL): PPO, best-of-n, an ensemble, early stopping",
        "jaxrlhf.recipes.lab_overoptimise",
    ),
    "lab sign-flip": Recipe(
        "the sign error of 2019 and its relatives, with and without guards",
        "jaxrlhf.recipes.lab_sign_flip",
    ),
    "lab queries": Recipe(
        "pairs chosen by an ensemble of reward models against random ones, at equal budgets",
        "jaxrlhf.recipes.lab_queries",
    ),
    "lab ratings": Recipe(
        "a reward model of verdicts, of soft labels from ratings, and of ratings themselves",
        "jaxrlhf.recipes.lab_ratings",
    ),
    "lab annotators": Recipe(
        "a reward model of annotators' soft labels, and of the majority's",
        "jaxrlhf.recipes.lab_annotators",
    ),
    "lab robot": Recipe(
        "the robot of 2017 that seems to grasp: an evaluator with one camera, and with more",
        "jaxrlhf.recipes.lab_robot",
    ),
    "lab noise": Recipe(
        "wrong labels, at random or all of one kind: what reward model and policy make of them",
        "jaxrlhf.recipes.lab_noise",
    ),
    "lab undo": Recipe(
        "safety training undone by fine-tuning on a few harmful examples",
        "jaxrlhf.recipes.lab_undo",
    ),
    "lab backdoor": Recipe(
        "models that behave until they see a trigger: audits, probes, and safety training by size",
        "jaxrlhf.recipes.lab_backdoor",
    ),
    "lab rater": Recipe(
        "raters of two kinds hinted at in the prompt: does the policy learn to know its rater",
        "jaxrlhf.recipes.lab_rater",
    ),
    "lab promise": Recipe(
        "a player that learns to promise and to break its word, and two penalties on that",
        "jaxrlhf.recipes.lab_promise",
    ),
    "lab sycophancy": Recipe(
        "labellers who like agreement, the policy that they make, and three remedies",
        "jaxrlhf.recipes.lab_sycophancy",
    ),
    "lab hacking": Recipe(
        "flaws planted in a reward: who sees them exploited, and what helps",
        "jaxrlhf.recipes.lab_hacking",
    ),
    "lab jailbreaks": Recipe(
        "framings that a safe model falls for, and what adversarial training leaves of them",
        "jaxrlhf.recipes.lab_jailbreaks",
    ),
}
