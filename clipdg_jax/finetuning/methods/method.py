"""What a method's file offers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from clipdg_jax.finetuning import parts


@dataclasses.dataclass(frozen=True)
class Method:
    """A method before it is given its settings.

    Attributes:
      about: what it does, in a few words.
      build: (its name, its section of the config) -> its parts. Raises UserError for a setting
        that is wrong.
      defaults: the section, at its default values; none: there is nothing to set.
    """

    about: str
    build: Callable[[str, Any], parts.Parts]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
