"""The suites: which evaluations belong together."""

from jaxrlhf.safety import choices, refusals
from jaxrlhf.safety.items import Evaluation

CHOICES = (choices.SYCOPHANCY, choices.TRUTHFUL, choices.BEHAVIOURS, choices.BIAS)
SUITES: dict[str, tuple[Evaluation, ...]] = {
    "safety": (*CHOICES, refusals.REFUSALS),
    "choices": CHOICES,  # these need no answer of the model's own, which is what takes the time
}
