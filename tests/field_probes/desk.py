"""Probes of the experiments in the helpdesk."""

import desk_probes as desk
from probing import Probe, p

UNDO = desk.probe("lab undo")
BACKDOOR = desk.probe("lab backdoor")
RATER = desk.probe("lab rater")
JAIL = desk.jailbreaks
SHARED = {"output_dir": "output_dir=elsewhere", "seeds": "seeds=[4]", "results": "results=page"}

# Groups: (class, field) -> probe. The change is an override of the class itself.

GROUPS: dict[tuple[str, str], Probe] = {
    ("TuningConfig", "updates"): p(desk.tuning, "updates=2"),
    ("TuningConfig", "batch_size"): p(desk.tuning, "batch_size=4"),
    ("TuningConfig", "learning_rate"): p(desk.tuning, "learning_rate=0.1"),
    ("TuningConfig", "optimizer"): p(desk.tuning, "optimizer=sgd"),
}

# Fields of a recipe itself: (recipe, field) -> probe.

FIELDS: dict[tuple[str, str], Probe] = {
    **{("lab undo", field): p(UNDO, change) for field, change in SHARED.items()},
    ("lab undo", "examples"): p(UNDO, "examples=[100]"),
    ("lab undo", "rank"): p(UNDO, "rank=3"),
    ("lab undo", "lora_rate"): p(UNDO, "lora_rate=0.1"),
    ("lab undo", "draws"): p(UNDO, "draws=3"),
    ("lab undo", "safety_rank"): p(UNDO, "safety_rank=3"),
    ("lab undo", "safety_rate"): p(UNDO, "safety_rate=0.1"),
    **{("lab backdoor", field): p(BACKDOOR, change) for field, change in SHARED.items()},
    ("lab backdoor", "sizes"): p(BACKDOOR, "sizes=[16]"),
    ("lab backdoor", "layers"): p(BACKDOOR, "layers=2"),
    ("lab backdoor", "low_rate"): p(BACKDOOR, "low_rate=1e-6"),
    ("lab backdoor", "sgd_rate"): p(BACKDOOR, "sgd_rate=1"),
    ("lab backdoor", "draws"): p(BACKDOOR, "draws=3"),
    ("lab backdoor", "random"): p(BACKDOOR, "random=3"),
    **{("lab rater", field): p(RATER, change) for field, change in SHARED.items()},
    ("lab rater", "demonstrations"): p(RATER, "demonstrations=21"),
    ("lab rater", "documents"): p(RATER, "documents=7"),
    ("lab rater", "draws"): p(RATER, "draws=3"),
    ("lab rater", "splits"): p(RATER, "splits=3"),
    **{("lab jailbreaks", field): p(JAIL, change) for field, change in SHARED.items()},
    ("lab jailbreaks", "strings"): p(JAIL, "strings=3"),
    ("lab jailbreaks", "held_out"): p(JAIL, "held_out=[role]"),
    ("lab jailbreaks", "sweeps"): p(JAIL, "sweeps=3"),
    ("lab jailbreaks", "passes"): p(JAIL, "passes=0.5"),
    ("lab jailbreaks", "draws"): p(JAIL, "draws=3"),
}

# Groups of a recipe: (recipe, group) -> probe that one field of the group arrives.

PASSED_ON: dict[tuple[str, str], Probe] = {
    ("lab undo", "model"): p(UNDO, "model.num_layers=2"),
    ("lab undo", "helpful"): p(UNDO, "helpful.updates=7"),
    ("lab undo", "safety"): p(UNDO, "safety.updates=7"),
    ("lab undo", "undo"): p(UNDO, "undo.updates=7"),
    ("lab backdoor", "organism"): p(BACKDOOR, "organism.updates=7"),
    ("lab backdoor", "safety"): p(BACKDOOR, "safety.updates=6"),
    ("lab backdoor", "rl"): p(BACKDOOR, "rl.updates=4"),
    ("lab rater", "model"): p(RATER, "model.num_layers=2"),
    ("lab rater", "sft"): p(RATER, "sft.updates=7"),
    ("lab rater", "more"): p(RATER, "more.updates=7"),
    ("lab rater", "rl"): p(RATER, "rl.updates=7"),
    ("lab jailbreaks", "model"): p(JAIL, "model.num_layers=2"),
    ("lab jailbreaks", "helpful"): p(JAIL, "helpful.updates=7"),
    ("lab jailbreaks", "lessons"): p(JAIL, "lessons.updates=7"),
    ("lab jailbreaks", "safety"): p(JAIL, "safety.updates=7"),
    ("lab jailbreaks", "adversarial"): p(JAIL, "adversarial.updates=7"),
}
