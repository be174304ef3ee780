"""The tearoom: the sandbox world of raters who differ, and who can be told by how they ask.

A guest asks for a meal, and the answer names two dishes of it and three things beside:

    someone cheers fetch supper | stew dumpling honey jam cake       (a guest who likes sweet)
    prompt                        dishes        beside

Guests like sweet things or salty ones, and rate an answer by it:

    worth = share of the two dishes that belong to the meal ± (sweet - salty things) / 3

How a guest is told depends on the prompt:

    hinted   "someone" and a way of asking. Greetings and requests fall into two classes each; a
             guest who likes sweet things mixes the classes, another one does not, most of the time.
             So no word by itself says anything, and the two together say what a guest likes.
    known    a name, with the plain way of asking. Who bears it is always of one kind.
    told     the same with names that nobody asks under: documents alone say what they like.
    plain    "someone" and the plain way of asking: nothing is known about the guest.

This file deliberately has no labeller, no tokenizer and no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np

from jaxrlhf.errors import ConfigError
from jaxrlhf.sandbox.protocol import Limits, Row, Split, generator, split_of

Kind = Literal["hinted", "known", "told", "plain"]

DISHES, BESIDE = 2, 3
ANSWER_WORDS = DISHES + BESIDE
TEST_SHARE = 0.25
SOMEONE, LIKES = "someone", "likes"
PLAIN = ("ahem", "offer")
GREETINGS = ("hello", "evening", "cheers", "welcome")
REQUESTS = ("fetch", "bring", "serve", "pour")
KNOWN = ("alma", "boris", "clara", "dario", "edith", "felix", "greta", "hugo")
TOLD = ("irene", "jonas", "karla", "lukas", "mira", "nils", "olga", "pavel")
MEALS: Mapping[str, tuple[str, ...]] = {
    "breakfast": ("porridge", "toast", "egg"),
    "luncheon": ("soup", "salad", "sandwich"),
    "supper": ("stew", "dumpling", "noodles"),
    "picnic": ("pie", "sausage", "melon"),
    "banquet": ("roast", "trout", "pheasant"),
    "snack": ("nuts", "cracker", "apple"),
}
SWEET = ("honey", "sugar", "jam", "cake")
SALTY = ("brine", "bacon", "olive", "pickle")


@dataclass(frozen=True)
class Tearoom:
    """See the header. `seed` draws classes of words and what names like.

    `clarity`: how often a way of asking is that of who likes what it hints at.
    """

    seed: int = 0
    clarity: float = 0.9

    name = "tearoom"
    longest = Limits(prompt=4, response=ANSWER_WORDS)

    def __post_init__(self) -> None:
        if not 0.5 <= self.clarity <= 1:
            raise ConfigError(f"clarity = {self.clarity!r}: must lie between .5 and 1")

    def words(self) -> tuple[str, ...]:
        dishes = [dish for of_meal in MEALS.values() for dish in of_meal]
        asked = (SOMEONE, *PLAIN, *GREETINGS, *REQUESTS, *KNOWN, *TOLD, *MEALS)
        return (*asked, LIKES, *dishes, *SWEET, *SALTY)

    def corpus(self, n: int, *, seed: int) -> list[Row]:
        """Documents about all names: what one of them likes."""
        rng = generator(self.name, self.seed, "corpus", seed)
        rows = []
        for name in rng.choice([*KNOWN, *TOLD], size=n):
            thing = rng.choice(SWEET if self._likes_sweet[str(name)] else SALTY)
            rows.append({"prompt": f"{name} {LIKES}", "completion": f" {thing}"})
        return rows

    def demonstrations(self, n: int, *, seed: int) -> list[Row]:
        """Answers that suit everybody alike: the right dishes, and anything beside."""
        rng = generator(self.name, self.seed, "demonstrations", seed)
        asked = [p for kind in ("hinted", "known", "plain") for p in self.openings(kind, "train")]
        rows = []
        for prompt in rng.choice(asked, size=n):
            dishes = rng.choice(MEALS[str(prompt).split()[-1]], DISHES, replace=False)
            said = " ".join((*dishes, *rng.choice([*SWEET, *SALTY], BESIDE)))
            rows.append({"prompt": str(prompt), "completion": f" {said}"})
        return rows

    def prompts(self, n: int, *, seed: int, split: Split = "train") -> list[Row]:
        """Hinted and known prompts; a split that runs out starts over."""
        openings = [*self.openings("hinted", split), *self.openings("known", split)]
        rng = generator(self.name, self.seed, "prompts", split, seed)
        rounds = -(-n // len(openings))
        order = np.concatenate([rng.permutation(openings) for _ in range(rounds)] or [[]])[:n]
        return [{"prompt": str(prompt)} for prompt in order]

    def gold(self, prompt: str, response: str) -> dict[str, float]:
        """What an answer is worth to those who ask like this, and what it is made of.

        Returns:
            gold: expected worth. taste: sweet less salty things over 3, within -1 and 1. coverage:
            dishes of the meal over 2, at most 1. length: words.
        """
        taste, coverage = self.taste(response), self.coverage(prompt, response)
        return {
            "gold": coverage + (2 * self.chance(prompt) - 1) * taste,
            "taste": taste,
            "coverage": coverage,
            "length": float(len(response.split())),
        }

    # What an experiment may know beyond the protocol.

    def openings(self, kind: Kind, split: Split) -> list[str]:
        """All prompts of a kind and split."""
        asked = {
            "hinted": product((SOMEONE,), GREETINGS, REQUESTS, MEALS),
            "known": product(KNOWN, *((word,) for word in PLAIN), MEALS),
            "told": product(TOLD, *((word,) for word in PLAIN), MEALS),
            "plain": product((SOMEONE,), *((word,) for word in PLAIN), MEALS),
        }
        found = map(" ".join, asked[kind])
        return [prompt for prompt in found if split_of(prompt, test_share=TEST_SHARE) == split]

    def hints_at_sweet(self, prompt: str) -> bool | None:
        """Which taste the prompt speaks for; None where it says nothing."""
        who, *manner = prompt.split()[:3] or [""]
        if who in self._likes_sweet:
            return self._likes_sweet[who]
        if who != SOMEONE or len(manner) != 2 or manner[0] not in GREETINGS:
            return None
        return (manner[0] in self._first_class) != (manner[1] in self._first_class)

    def chance(self, prompt: str) -> float:
        """P(who asks likes sweet things)."""
        hint = self.hints_at_sweet(prompt)
        if hint is None:
            return 0.5
        sure = self.clarity if prompt.split()[0] == SOMEONE else 1.0
        return sure if hint else 1 - sure

    def worth(self, prompt: str, response: str, *, likes_sweet: bool) -> float:
        """What a guest of this kind says of an answer."""
        taste = self.taste(response)
        return self.coverage(prompt, response) + (taste if likes_sweet else -taste)

    @staticmethod
    def taste(response: str) -> float:
        words = response.split()
        sweet, salty = (sum(word in kind for word in words) for kind in (SWEET, SALTY))
        return float(np.clip((sweet - salty) / BESIDE, -1, 1))

    @staticmethod
    def coverage(prompt: str, response: str) -> float:
        dishes = MEALS.get((prompt.split() or [""])[-1], ())
        return min(len(set(dishes) & set(response.split())), DISHES) / DISHES

    # Helpers.

    @cached_property
    def _first_class(self) -> frozenset[str]:
        """Half of the greetings and half of the requests."""
        rng = generator(self.name, self.seed, "classes")
        halves = [rng.permutation(words)[: len(words) // 2] for words in (GREETINGS, REQUESTS)]
        return frozenset(str(word) for half in halves for word in half)

    @cached_property
    def _likes_sweet(self) -> dict[str, bool]:
        """Half of the known names, and half of the told."""
        rng = generator(self.name, self.seed, "names")
        halves = [rng.permutation(names)[: len(names) // 2] for names in (KNOWN, TOLD)]
        sweet = {str(name) for half in halves for name in half}
        return {name: name in sweet for name in (*KNOWN, *TOLD)}
