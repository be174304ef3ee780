"""How far a policy has gone from where it started, on figures that every update writes down.

The first update's figures are the reference's own: its responses were sampled before anything was
learned. Deliberately not here: whether what the policy does is any good.
"""

from typing import ClassVar

from pydantic import Field

from jaxrlhf.guards.base import Guard, Lasting, Seen

KL = "objective/kl_k1"
REF_LOG_PROB = "guards/ref_log_prob"
ENTROPY = "guards/entropy"
REPETITION = "rollout/repetition"
LENGTH = "rollout/length"
EOS_RATE = "rollout/eos_rate"


class KLBudget(Guard):
    """KL to the reference, summed over a response."""

    figures: ClassVar = (KL,)
    max_kl: float = Field(default=50.0, gt=0, description="nats a response")

    def look(self, seen: Seen) -> str | None:
        now = seen.last(KL, 1)
        if now and now[0] > self.max_kl:
            return (
                f"KL to the reference is {now[0]:.1f} nats a response, the budget {self.max_kl:g}"
            )
        return None


class Fluency(Lasting):
    """How likely the reference finds what the policy says: gibberish is what nobody expected."""

    figures: ClassVar = (REF_LOG_PROB,)
    max_drop: float = Field(
        default=1.0, gt=0, description="nats a token below the first update's log-prob"
    )

    def look(self, seen: Seen) -> str | None:
        start = seen.first(REF_LOG_PROB)
        if start is None:
            return None
        now = self.running(seen, REF_LOG_PROB, lambda x: start - x > self.max_drop)
        if now is None:
            return None
        return (
            f"the reference gives a token of the policy {now:.2f} nats, {start - now:.2f} below "
            f"the {start:.2f} of the first update; at most {self.max_drop:g} is allowed"
        )


class Entropy(Lasting):
    """A policy that has stopped to explore says the same whatever it is paid."""

    figures: ClassVar = (ENTROPY,)
    min_share: float = Field(
        default=0.1, ge=0, le=1, description="of the first update's entropy a token"
    )

    def look(self, seen: Seen) -> str | None:
        start = seen.first(ENTROPY)
        if start is None:
            return None
        now = self.running(seen, ENTROPY, lambda x: x < self.min_share * start)
        if now is None:
            return None
        return (
            f"entropy is {now:.4f} nats a token, {now / start:.1%} of the first update's "
            f"{start:.4f}; at least {self.min_share:.1%} is asked for"
        )


class Repetition(Lasting):
    """The share of tokens that already stand earlier in the same response."""

    figures: ClassVar = (REPETITION,)
    max_rise: float = Field(default=0.3, gt=0, description="above the first update's share")

    def look(self, seen: Seen) -> str | None:
        start = seen.first(REPETITION)
        if start is None:
            return None
        now = self.running(seen, REPETITION, lambda x: x - start > self.max_rise)
        if now is None:
            return None
        return (
            f"{now:.1%} of the tokens repeat one of the same response, {start:.1%} at the first "
            f"update; a rise of {self.max_rise:.1%} is allowed"
        )


class Length(Lasting):
    """Responses that grow or shrink without end, as where length is what the reward likes."""

    figures: ClassVar = (LENGTH,)
    max_factor: float = Field(
        default=2.5, gt=1, description="longer or shorter than at first, as a factor"
    )

    def look(self, seen: Seen) -> str | None:
        start = seen.first(LENGTH)
        if not start:
            return None
        low, high = start / self.max_factor, start * self.max_factor
        now = self.running(seen, LENGTH, lambda x: not low <= x <= high)
        if now is None:
            return None
        return (
            f"a response has {now:.1f} tokens, {start:.1f} at the first update; between {low:.1f} "
            f"and {high:.1f} is allowed"
        )


class EosRate(Lasting):
    """The share of responses that end by themselves."""

    figures: ClassVar = (EOS_RATE,)
    min_share: float = Field(default=0.5, ge=0, le=1, description="of the first update's rate")

    def look(self, seen: Seen) -> str | None:
        start = seen.first(EOS_RATE)
        if start is None:
            return None
        now = self.running(seen, EOS_RATE, lambda x: x < self.min_share * start)
        if now is None:
            return None
        return (
            f"{now:.1%} of the responses end by themselves, {start:.1%} at the first update; at "
            f"least {self.min_share * start:.1%} is asked for"
        )
