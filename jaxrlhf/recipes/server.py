"""The config block of a model behind an OpenAI-compatible endpoint, and what asking would cost."""

import logging
from pathlib import Path
from typing import Literal

from pydantic import Field

from jaxrlhf.config import Config
from jaxrlhf.constitutional.endpoint import Endpoint
from jaxrlhf.constitutional.served import Estimate, Rehearsal, Served
from jaxrlhf.errors import ConfigError, UserError
from jaxrlhf.recipes import blocks
from jaxrlhf.recipes.sample import SamplingConfig

log = logging.getLogger(__name__)


class ServerConfig(Config):
    """An OpenAI-compatible endpoint."""

    url: str | None = Field(
        default=None, pattern="^https?://", description="with its version: http://localhost:8000/v1"
    )
    model: str | None = Field(default=None, description="the name that the server knows it by")
    api: Literal["completions", "chat"] = Field(
        default="completions", description="post texts as they are, or as one turn of a chat"
    )
    key_variable: str | None = Field(
        default=None, description="environment variable with the API key; null: none is sent"
    )
    cache: str = Field(default="runs/answers", description="folder where answers are kept")
    concurrency: int = Field(default=8, ge=1, description="requests under way at a time")
    timeout: float = Field(default=60.0, gt=0, description="seconds of silence before a new try")
    retries: int = Field(default=5, ge=0, description="new tries of a request")
    backoff: float = Field(
        default=1.0, ge=0, description="seconds before the first; doubled each time, at random"
    )
    price_read: float = Field(default=0.0, ge=0, description="of a million tokens read")
    price_written: float = Field(default=0.0, ge=0, description="of a million tokens written")
    seconds_per_request: float = Field(default=1.0, gt=0, description="for the estimate of time")
    max_cost: float | None = Field(
        default=None, ge=0, description="a run that is estimated to cost more is refused"
    )
    estimate_only: bool = Field(default=False, description="say what it would take, and stop")

    def build(self, sampling: SamplingConfig, *, batch_size: int, seed: int) -> Served:
        """The model behind it; nothing is sent yet.

        Raises:
          ConfigError: no model is named, or texts are to be drawn as such an API cannot.
        """
        plain = SamplingConfig(
            response_length=sampling.response_length, temperature=sampling.temperature
        )
        if sampling != plain:
            raise ConfigError("sampling: an endpoint takes response_length and temperature alone")
        return Served(
            Endpoint(
                url=blocks.required("server.url", self.url),
                cache=Path(self.cache),
                key_variable=self.key_variable,
                concurrency=self.concurrency,
                timeout=self.timeout,
                retries=self.retries,
                backoff=self.backoff,
            ),
            model=blocks.required("server.model", self.model),
            max_new_tokens=sampling.response_length,
            api=self.api,
            temperature=sampling.temperature,
            batch_size=batch_size,
            seed=seed,
        )

    def estimated(self, rehearsal: Rehearsal) -> Estimate:
        """What the noted requests would take.

        Raises:
          UserError: more than `max_cost`.
        """
        found = rehearsal.estimate(
            price_read=self.price_read,
            price_written=self.price_written,
            seconds_per_request=self.seconds_per_request,
        )
        log.info("%s: %s", self.url, found)
        if self.max_cost is not None and found.cost > self.max_cost:
            raise UserError(f"server.max_cost = {self.max_cost}: {found}")
        return found
