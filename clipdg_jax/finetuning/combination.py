"""Methods joined by +: a list of parts, folded into one."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipdg_jax import errors
from clipdg_jax.finetuning import methods, parts

# Point of a sweep: coefficient by method.
Point = Mapping[str, float]

# What trains all, without protection: what `wise_ft` alone interpolates with.
PLAIN = "full"


@dataclasses.dataclass(frozen=True)
class Combination:
    """One or more methods, folded.

    Attributes:
      name: as it was given, such as `lora+kd`.
      members: the parts of each, in the order given.
    """

    name: str
    members: tuple[parts.Parts, ...]

    @property
    def trains(self) -> bool:
        """Whether there is anything but the pre-trained model."""
        return all(member.trains for member in self.members)

    @functools.cached_property
    def training(self) -> str:
        """The name of what is trained, without what comes after; combinations may share it."""
        names = [member.name for member in self.members if not member.after]
        return "+".join(names) or PLAIN

    @property
    def reparam(self) -> parts.Reparam:
        """Which parameters there are and train."""
        found = self._only("reparam")
        if found is not None:
            return found
        if self.data.trains_text:
            return parts.Reparam(trainable=rf"^(?!{parts.PRETRAINED}|{parts.HEAD})")
        return parts.Reparam()

    @property
    def penalties(self) -> dict[str, parts.Penalty]:
        """By method."""
        return {member.name: member.penalty for member in self.members if member.penalty}

    @functools.cached_property
    def data(self) -> parts.Data:
        """What is trained on: one loss for the labelled images, and what others add to it."""
        loss = self._only("loss", [m.data.loss if m.data else None for m in self.members])
        kinds = [member.data for member in self.members if member.data]
        replay = self._only("replay", [kind.replay or None for kind in kinds]) or 0.0
        return parts.Data(
            loss=loss,
            prompts=any(kind.prompts for kind in kinds),
            trains_text=any(kind.trains_text for kind in kinds),
            replay=replay,
            mix=next((kind.mix for kind in kinds if kind.replay), ""),
        )

    @property
    def added(self) -> dict[str, parts.Data]:
        """By method, those data parts that add to the loss."""
        return {m.name: m.data for m in self.members if m.data and m.data.added}

    @property
    def after(self) -> parts.After | None:
        """What becomes of the trained parameters."""
        return self._only("after")

    @property
    def lr(self) -> float:
        """The learning rate of the first member that has its own; 0: the config's."""
        return next((member.lr for member in self.members if member.lr), 0.0)

    @property
    def uses_text(self) -> bool:
        """Whether training runs the text tower."""
        return self.data.trains_text or self.data.prompts or self.data.replay > 0

    @property
    def sweeps(self) -> dict[str, parts.Sweep]:
        """By method, the coefficients to be tried."""
        return {member.name: member.sweep for member in self.members if member.sweep}

    def points(self) -> list[dict[str, float]]:
        """Every point of the sweep: one training each."""
        names = list(self.sweeps)
        values = [self.sweeps[name].values for name in names]
        return [dict(zip(names, found)) for found in itertools.product(*values)]

    def protection(self, point: Point, alpha: float) -> float:
        """How strongly a point protects, for comparison with others of the same combination.

        The sum, over all that is swept, of its place among the values tried: 0 for the weakest, 1
        for the strongest. So, where one thing is swept, the order is that of its values.
        """
        places = []
        for name, sweep in self.sweeps.items():
            order = sorted(sweep.values, reverse=sweep.stronger == "smaller")
            places.append(order.index(point[name]) / max(1, len(order) - 1))
        if self.after is not None:
            alphas = self.after.alphas
            places.append(1 - alphas.index(alpha) / max(1, len(alphas) - 1))
        return float(np.sum(places))

    def _only(self, part: str, found: Sequence[Any] | None = None) -> Any:
        """The one member's part of this kind. Raises UserError where two members have one."""
        each = [getattr(m, part) for m in self.members] if found is None else found
        have = [value for value in each if value is not None]
        if len(have) > 1:
            raise errors.UserError(
                f"method {self.name!r}: two of its methods have a {part} part; join methods that "
                "differ in what they change"
            )
        return have[0] if have else None


def fold(name: str, config: Any) -> Combination:
    """The combination that a name means.

    Args:
      name: methods joined by +.
      config: the run's; the section `<method>` is each method's own.

    Raises:
      UserError: a method does not exist, cannot be combined with another, or has a wrong setting.
    """
    names = name.split("+")
    if len(set(names)) < len(names):
        raise errors.UserError(f"method {name!r}: names one twice; name each once")
    members = tuple(methods.get(member).build(member, config.get(member) or {}) for member in names)
    folded = Combination(name, members)
    if len(members) > 1 and not folded.trains:
        raise errors.UserError(f"method {name!r}: zero_shot is not trained, and combines with none")
    # All parts are put together once, so that what does not fit is told before anything runs.
    _ = folded.reparam, folded.data, folded.after
    return folded
