"""Probes of what people say: the labelling page, annotators, ratings."""

import label_probes as labels
import ratings_probes as ratings
from probing import Probe, p

# Groups: (class, field) -> probe. The change is an override of the class itself.

GROUPS: dict[tuple[str, str], Probe] = {
    ("OnlineConfig", "k"): p(ratings.rated, "online.k=8", base=ratings.ONLINE),
    ("OnlineConfig", "start"): p(ratings.rated, "online.start=1500", base=ratings.ONLINE),
    ("OnlineConfig", "scale"): p(ratings.rated, "online.scale=100", base=ratings.ONLINE),
    ("OnlineConfig", "orders"): p(ratings.rated, "online.orders=3"),
}

# Fields of a recipe itself: (recipe, field) -> probe.

FIELDS: dict[tuple[str, str], Probe] = {
    ("label", "store"): p(labels.labelled, f"store={labels.new_folder()}/other.sqlite"),
    ("label", "pairs"): p(labels.labelled, "pairs=[preferences.jsonl, pairs.jsonl]"),
    ("label", "columns"): p(
        labels.labelled, "columns={a: prompt}", base=("pairs=[other.jsonl]", "columns={a: first}")
    ),
    ("label", "guideline"): p(labels.labelled, "guideline=guideline.md"),
    ("label", "title"): p(labels.labelled, "title=Which one?"),
    ("label", "next"): p(labels.labelled, "next=priority"),
    ("label", "overlap"): p(labels.labelled, "overlap=2"),
    ("label", "patience"): p(labels.labelled, "patience=1e-9"),
    ("label", "seed"): p(labels.labelled, "seed=1"),
    ("label", "host"): p(labels.labelled, "host=localhost"),
    ("label", "port"): p(labels.labelled, "port=1234"),
    ("label", "token"): p(labels.labelled, "token=a-token-of-enough-letters"),
    ("convert-labels", "input"): p(labels.converted, "input=[preferences.jsonl]"),
    ("convert-labels", "columns"): p(
        labels.converted,
        "columns={a: prompt}",
        base=("input=[other.jsonl]", "columns={a: first}", "format=rows"),
    ),
    ("convert-labels", "annotator"): p(
        labels.converted, "annotator=bob", base=("input=[preferences.jsonl]",)
    ),
    ("convert-labels", "output"): p(labels.converted, f"output={labels.new_folder()}/other.jsonl"),
    ("convert-labels", "format"): p(labels.converted, "format=argilla"),
    ("convert-labels", "labels"): p(labels.converted, "labels=[.5,.6,.7,.8]"),
    ("convert-labels", "margins"): p(labels.converted, "margins=[0,1,2,3]"),
    ("convert-labels", "ties"): p(labels.converted, "ties=half"),
    ("elo", "battles"): p(ratings.rated, "battles=fewer.jsonl"),
    ("elo", "output_dir"): p(ratings.rated, "output_dir=elsewhere"),
    ("elo", "columns"): p(
        ratings.rated, "columns={model_a: player}", base=("battles=swapped.jsonl",)
    ),
    ("elo", "outcomes"): p(ratings.rated, "outcomes={better: 1}", base=("battles=words.jsonl",)),
    ("elo", "limit"): p(ratings.rated, "limit=60"),
    ("elo", "on_bad_row"): p(ratings.rated, "on_bad_row=skip", base=("battles=bad.jsonl",)),
    ("elo", "ties"): p(ratings.rated, "ties=davidson"),
    ("elo", "prior"): p(ratings.rated, "prior=1"),
    ("elo", "phantom"): p(ratings.rated, "phantom=1"),
    ("elo", "covariates"): p(ratings.rated, "covariates=[length]"),
    ("elo", "texts"): p(ratings.rated, "texts=[a, prompt]", base=("covariates=[length]",)),
    ("elo", "effects_prior"): p(ratings.rated, "effects_prior=9", base=("covariates=[length]",)),
    ("elo", "anchor"): p(ratings.rated, "anchor=base"),
    ("elo", "anchor_rating"): p(ratings.rated, "anchor_rating=0"),
    ("elo", "interval"): p(ratings.rated, "interval=bootstrap", base=("resamples=100",)),
    ("elo", "resamples"): p(ratings.rated, "resamples=101", base=ratings.BOOTSTRAP),
    ("elo", "cluster"): p(ratings.rated, "cluster=prompt", base=ratings.BOOTSTRAP),
    ("elo", "confidence"): p(ratings.rated, "confidence=0.9"),
    ("elo", "seed"): p(ratings.rated, "seed=1", base=ratings.BOOTSTRAP),
    ("annotators", "labels"): p(ratings.judged, "labels=fewer.jsonl"),
    ("annotators", "output_dir"): p(ratings.judged, "output_dir=elsewhere"),
    ("annotators", "columns"): p(
        ratings.judged, "columns={a: text_a, b: text_b}", base=("labels=swapped.jsonl",)
    ),
    ("annotators", "outcomes"): p(
        ratings.judged, "outcomes={better: 1}", base=("labels=words.jsonl",)
    ),
    ("annotators", "wide"): p(
        ratings.judged, "wide=[one, two, three]", base=("labels=wide.jsonl",)
    ),
    ("annotators", "limit"): p(ratings.judged, "limit=60"),
    ("annotators", "on_bad_row"): p(ratings.judged, "on_bad_row=skip", base=("labels=bad.jsonl",)),
    ("annotators", "model"): p(ratings.judged, "model=majority"),
    ("annotators", "prior"): p(ratings.judged, "prior=5"),
    ("annotators", "seed"): p(ratings.judged, "seed=1"),
    ("rate-answers", "comparisons"): p(ratings.pooled, "comparisons=fewer.jsonl"),
    ("rate-answers", "output_dir"): p(ratings.pooled, "output_dir=elsewhere"),
    ("rate-answers", "columns"): p(
        ratings.pooled, "columns={a: text_a, b: text_b}", base=("comparisons=swapped.jsonl",)
    ),
    ("rate-answers", "outcomes"): p(
        ratings.pooled, "outcomes={better: 1}", base=("comparisons=words.jsonl",)
    ),
    ("rate-answers", "limit"): p(ratings.pooled, "limit=60"),
    ("rate-answers", "on_bad_row"): p(
        ratings.pooled, "on_bad_row=skip", base=("comparisons=bad.jsonl",)
    ),
    ("rate-answers", "prior"): p(ratings.pooled, "prior=3"),
    ("rate-answers", "pairs"): p(ratings.pooled, "pairs=compared"),
    ("rate-answers", "target"): p(ratings.pooled, "target=margin"),
}

# Groups of a recipe: (recipe, group) -> probe that one field of the group arrives.

PASSED_ON: dict[tuple[str, str], Probe] = {
    ("elo", "online"): p(ratings.rated, "online.orders=2"),
}
