"""How a task is fine-tuned: the protocol, and what gin may say differently."""

import dataclasses
from typing import Literal

from langsamp_jax.config import configurable, require


@configurable("finetune")
class FineTuneConfig:
    """What a protocol says, unless it is said here (None: the protocol's).

    Attributes:
      learning_rate: the highest rate.
      num_epochs: passes over the examples of the source language.
      batch_size: examples of an update.
      max_length: most tokens of an example.
      num_seeds: trainings, each from its own seed; results are their means.
      accumulation: the published classification code means to add up the gradients of two parts
        of a batch, but forgets the first, and lets its learning rate end at half of where it
        began. published does the same, mended what was meant.
    """

    learning_rate: float | None = None
    num_epochs: int | None = None
    batch_size: int | None = None
    max_length: int | None = None
    num_seeds: int | None = None
    accumulation: Literal["mended", "published"] = "mended"

    def check(self) -> None:
        for field in ("learning_rate", "num_epochs", "batch_size", "max_length", "num_seeds"):
            value = getattr(self, field)
            require(value is None or value > 0, self, field, "a number above 0, or None")
        fits = self.max_length is None or self.max_length > 2
        require(fits, self, "max_length", "room for a piece between <s> and </s>: 3 or more")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a task is fine-tuned.

    Attributes:
      pooled: a label for the sentence, of a head with one hidden layer; else one for each word, of
        a linear head.
      batch_size: examples of an update, in ``parts`` parts where that makes a difference.
      clip_norm: of the gradient; infinite: not clipped.
      published_defect: see ``FineTuneConfig``.
    """

    pooled: bool
    learning_rate: float
    num_epochs: int
    batch_size: int
    parts: int
    max_length: int
    num_seeds: int
    clip_norm: float
    published_defect: bool = False

    def changed(self, config: FineTuneConfig) -> "Protocol":
        """Returns this protocol with what a config says differently."""
        given = {name: value for name, value in dataclasses.asdict(config).items() if value}
        defect = given.pop("accumulation") == "published" and self.parts > 1
        changed = dataclasses.replace(self, **given, published_defect=defect)
        whole = not defect or changed.batch_size % self.parts == 0
        require(whole, config, "batch_size", f"a multiple of {self.parts}, the published parts")
        return changed

    @property
    def part_size(self) -> int:
        """Returns the number of examples in a gradient: of a whole batch, or of its last part."""
        return self.batch_size // (self.parts if self.published_defect else 1)
