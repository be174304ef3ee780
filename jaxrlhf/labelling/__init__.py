"""People compare answers: a local page, a store that loses nothing, and files in and out.

    pairs -> queue -> page -> store -> rows

**The verdict row** is what everything downstream reads (`jaxrlhf convert-labels` writes it; so do
other tools that make labels). One row is one person's verdict on one pair:

| column | value |
|---|---|
| `pair_id` | text; equal ids, equal pairs. Made from prompt and answers where a file has none |
| `prompt`, `a`, `b` | text or messages, as in the file the pair came from |
| `model_a`, `model_b` | what wrote the answers, or null |
| `round` | whole number: the round of sampling and labelling that the pair belongs to |
| `annotator` | name |
| `verdict` | 1, 2, 3, 4: **a** is better (barely, somewhat, clearly, much); -1 to -4: **b** is; \
"tie"; "both_bad". The sign is that of score(a) - score(b) |
| `confidence` | 1 unsure, 2 fairly sure, 3 sure, or null |
| `flag` | true: somebody should look at this pair |
| `comment` | text, often empty |
| `shown_first` | "a" or "b": what stood on the left; null where nobody knows |
| `seconds` | from showing to saving, or null |
| `time` | when it was saved: ISO 8601, UTC, or null |

A verdict that was taken back is not a row. Modules: `records` (pairs, verdicts, their rows),
`store` (the database), `queue` (which pair next, for whom), `formats`, `trl`, `label_studio`,
`argilla` (files), `app` and `guard` (the page's server, and who may talk to it).
"""
