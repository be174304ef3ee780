"""Finished reward models beside TF-IDF and length on files of preference pairs.

Every pair is scored, however long: nothing is left out or cut, so all methods answer for the same
rows. A reward model's scores were standardised when it was finished; they are brought back to
log-odds here, which calibration is about. Used by `scripts/compare_reward.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrlhf import inference, plots
from jaxrlhf.data import arrays, chat, formats, sources
from jaxrlhf.data.formats import Preference
from jaxrlhf.data.rows import Loaded
from jaxrlhf.errors import CheckpointError, DataError
from jaxrlhf.evals import baselines, calibration, tfidf
from jaxrlhf.evals.baselines import Scores
from jaxrlhf.recipes import blocks, saved, stages

MEAN, OWN, EVERY, SHORT = "mean of them", "TF-IDF, own file", "TF-IDF, all files", "shorter"
BATCH = 64


def run(
    models: Sequence[str],
    train: Sequence[str],
    test: Sequence[str],
    *,
    out: Path,
    inverse_penalty: float,
) -> str:
    """Compare, write `comparison.{json,md}` and a calibration plot a test file; the Markdown.

    Args:
      models: folders of finished reward stages; the mean of several is a method too.
      train: files that TF-IDF is fitted to: the n-th alone for the n-th test file, and all.
      test: files of pairs.
      out: folder of the results.
      inverse_penalty: C of TF-IDF's regression.
    """
    if len(train) != len(test):
        raise DataError(f"{len(train)} training files but {len(test)} test files: name as many")
    texts = [answers(read(file)) for file in train]
    bags = [tfidf.fit_bag_of_words(*sides, inverse_penalty=inverse_penalty) for sides in texts]
    chosen, rejected = ([text for sides in texts for text in sides[i]] for i in (0, 1))
    bag = tfidf.fit_bag_of_words(chosen, rejected, inverse_penalty=inverse_penalty)
    out.mkdir(parents=True, exist_ok=True)
    parts, results = [], {}
    for file, own in zip(test, bags, strict=True):
        pairs, name = read(file), Path(file).name.split(".")[0]
        sides = answers(pairs)
        methods = {folder: score_pairs(folder, pairs) for folder in models}
        if len(models) > 1:
            methods[MEAN] = mean_scores(list(methods.values()))
        best = calibration.evaluate_pairs(*list(methods.values())[-1])
        for label, fitted in ((OWN, own), (EVERY, bag)):
            methods[label] = fitted.scores(sides[0]), fitted.scores(sides[1])
        log_odds = set(methods)
        methods[SHORT] = tfidf.shortness(sides[0]), tfidf.shortness(sides[1])
        found = baselines.compare(methods, reference=OWN, log_odds=log_odds)
        parts.append(f"### {name}\n\n{baselines.markdown(found, reference=OWN)}\n")
        results[name] = [row._asdict() for row in found]
        draw_calibration(out / f"calibration_{name}.png", best, title=f"Calibration, {name}")
    stages.write_json(out / "comparison.json", results)
    (out / "comparison.md").write_text("\n".join(parts))
    return "\n".join(parts)


def read(file: str) -> Loaded[Preference]:
    """The pairs of a file."""
    return formats.preferences(sources.load_rows(file))


def answers(pairs: Loaded[Preference]) -> tuple[list[str], list[str]]:
    """Texts of the chosen and of the rejected answers, without their prompts."""

    def text(content: Any) -> str:
        return content if isinstance(content, str) else "\n".join(m["content"] for m in content)

    return [text(pair.chosen) for pair in pairs], [text(pair.rejected) for pair in pairs]


def score_pairs(folder: str, pairs: Loaded[Preference]) -> Scores:
    """Scores `[N]` of chosen and rejected answers, in nats, by a finished reward stage's model."""
    mesh = blocks.MeshConfig().build()
    model, params, tokenizer, _ = saved.load_scalar(str(Path(folder) / "model"), mesh)
    encoded = chat.encode_rows(tokenizer, pairs)
    if len(encoded) != len(pairs):
        raise DataError(f"{pairs.rows.name}: not every pair can be scored: {encoded.skipped}")
    lengths = np.array(
        [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in encoded]
    )
    scores = {side: np.zeros(len(pairs)) for side in ("chosen", "rejected")}
    order = np.argsort(lengths, kind="stable")
    for rows in np.array_split(order, -(-len(order) // BATCH)):
        longest = int(lengths[rows].max())
        width = 1 << (longest - 1).bit_length()  # few widths, so few compilations
        batch = arrays.pairs(
            [encoded[int(i)] for i in rows], length=width, pad_id=tokenizer.pad_token_id
        ).columns
        for side, column in scores.items():
            texts = batch[f"{side}_tokens"], batch[f"{side}_mask"]
            column[rows] = np.asarray(inference.reward_scores(model, params, *texts))
    unit = nats_per_score(folder)
    return scores["chosen"] * unit, scores["rejected"] * unit


def mean_scores(found: Sequence[Scores]) -> Scores:
    """The scores of an ensemble: the mean of its members', in nats."""
    chosen, rejected = (np.array([scores[side] for scores in found]) for side in (0, 1))
    return chosen.mean(axis=0), rejected.mean(axis=0)


def nats_per_score(folder: str) -> float:
    """What the standardisation of a finished reward model's scores divided by."""
    path = Path(folder) / "done.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no finished reward stage (no done.json)")
    return float(stages.read_json(path)["nats_per_score"])


def draw_calibration(path: Path, found: calibration.PairReport, *, title: str) -> None:
    """A reliability diagram as PNG."""
    curve = found.reliability
    columns = (curve.confidence.tolist(), curve.accuracy.tolist(), curve.pairs.tolist())
    path.write_bytes(plots.png(plots.reliability(*columns, found.ece, title=title)))
