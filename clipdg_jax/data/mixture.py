"""How many records of each dataset every batch holds.

A mix is either amounts (`natural=44M,rendition=13M`), which name seeded subsets of the datasets,
or bare weights (`natural=3,rendition=1`), which give shares only. A source with share p takes
floor(B p) or ceil(B p) records of a batch of B, and after s batches its total differs from s B p by
less than one record.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from clipdg_jax.errors import UserError

_UNITS = {"k": 10**3, "M": 10**6, "B": 10**9}
_AMOUNT = re.compile(r"(\d+\.?\d*|\.\d+)([kMB])|(\d{1,3}(?:_\d{3})+)")
_WEIGHT = re.compile(r"\d+\.?\d*|\.\d+")


@dataclasses.dataclass(frozen=True)
class Mix:
    """A parsed mix.

    Attributes:
      names: the datasets in the order given, those of weight 0 included.
      values: their weights, or how many of their records.
      amounts: whether `values` are numbers of records.
    """

    names: tuple[str, ...]
    values: tuple[Fraction, ...]
    amounts: bool

    @property
    def active_names(self) -> tuple[str, ...]:
        """The datasets of a positive weight: those to open, and to hand to the loader in order."""
        return tuple(name for name, value in zip(self.names, self.values, strict=True) if value)

    @property
    def active_values(self) -> tuple[Fraction, ...]:
        """The positive weights or amounts, in the order of `active_names`."""
        return tuple(value for value in self.values if value)

    @property
    def total(self) -> int | None:
        """Records in an epoch, or None where weights give shares only."""
        return int(sum(self.values)) if self.amounts else None


def parse_mix(text: str) -> Mix:
    """Parses `name=amount,...` (44M, 22.5M, 500k, 1_000) or `name=weight,...` (3, 0.75).

    A value of 0 leaves a dataset out, in either kind.

    Raises:
      UserError: the text is not of that form, mixes amounts with weights, names a dataset twice,
        or has a negative value or no positive one.
    """
    values: dict[str, Fraction] = {}
    kinds = set()
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.rpartition("="))
        if not equals or not name:
            raise _error(text, f"{part.strip()!r} is not of the form name=value")
        if name in values:
            raise _error(text, f"{name!r} is named twice")
        values[name], kind = _parse_value(text, name, value)
        if values[name]:
            kinds.add(kind)
    if not kinds:
        raise _error(text, "no weight is positive")
    if len(kinds) > 1:
        raise _error(text, "amounts (with a unit) and bare weights cannot be mixed")
    return Mix(tuple(values), tuple(values.values()), kinds == {"amount"})


def _parse_value(text: str, name: str, value: str) -> tuple[Fraction, str]:
    if re.fullmatch(r"-.*", value):
        raise _error(text, f"{name}={value} is negative")
    if found := _AMOUNT.fullmatch(value):
        number, unit, grouped = found.groups()
        amount = Fraction(grouped.replace("_", "")) if grouped else Fraction(number) * _UNITS[unit]
        if amount.denominator != 1:
            raise _error(text, f"{name}={value} is not a whole number of records")
        return amount, "amount"
    if _WEIGHT.fullmatch(value):
        return Fraction(value), "weight"
    raise _error(text, f"{value!r} of {name} is neither an amount nor a weight")


def _error(text: str, problem: str) -> UserError:
    return UserError(
        f"data.mix: {text!r}: {problem}; give amounts such as natural=44M,rendition=500k "
        "or weights such as natural=3,rendition=1"
    )


class Schedule:
    """Exact numbers of records per source and batch, for batches 0, 1, ..., `steps` - 1.

    Every batch holds the whole part of each share, B p_i rounded down, and some of its `extras`,
    the one record that the fractions of the shares add up to in turn. Which sources take the
    extras is a fair schedule of periodic tasks: see `fair_schedule`.

    Args:
      weights: of each source, positive; only their ratios matter.
      batch_size: records per batch.
      steps: batches that will be asked for.
    """

    def __init__(self, weights: Sequence[Fraction], batch_size: int, steps: int) -> None:
        exact = [Fraction(weight) * batch_size / sum(weights) for weight in weights]
        self._whole = np.array([math.floor(share) for share in exact], np.int64)
        fractions = [share - math.floor(share) for share in exact]
        self._period = math.lcm(*(fraction.denominator for fraction in fractions))
        self._per_period = np.array([f * self._period for f in fractions], np.int64)
        chosen = fair_schedule(fractions, min(steps, self._period))
        self._before = np.zeros((len(chosen) + 1, len(exact)), np.int64)
        np.cumsum(chosen, axis=0, out=self._before[1:])

    def before(self, step: int) -> Int64[np.ndarray, " sources"]:
        """Records of each source in batches 0 to `step` - 1 together."""
        periods, rest = divmod(step, self._period)
        return step * self._whole + periods * self._per_period + self._before[rest]

    def whole(self, source: int) -> int:
        """Records of a source that every batch holds: its share, rounded down."""
        return int(self._whole[source])

    def counts(self, step: int) -> Int64[np.ndarray, " sources"]:
        """Records of each source in batch `step`."""
        return self.before(step + 1) - self.before(step)


def fair_schedule(rates: Sequence[Fraction], steps: int) -> np.ndarray:
    """Which of the tasks run at each step, such that each keeps within one run of its rate.

    The rates are in [0, 1) and their sum, a whole number m, is how many run at each step. This is
    a Pfair schedule of periodic tasks on m processors (Baruah, Cohen, Plaxton, Varvel 1996): run
    number i of a task of rate w falls within the steps floor((i - 1) / w) to ceil(i / w) - 1, so
    that after s steps it has run s w times, give or take less than once. Such a schedule is found
    by running, at each step, the m tasks of the highest priority under the rule PD2 (Anderson and
    Srinivasan 2004), which is optimal: earliest deadline first; on a tie, those whose next run's
    window overlaps this one's; then, those with the later group deadline (the end of the cascade
    of forced runs that follows if a heavy task, of rate 1/2 or more, waits until the last step).

    Returns: bool [steps, tasks].
    """
    parallel = int(sum(rates))
    chosen = np.zeros((steps, len(rates)), bool)
    # (deadline, no overlap, -group deadline, task) orders by priority, ties by task number.
    pending: list[tuple[int, int, int, int] | None] = [
        _priority(rate, 1, task) if rate else None for task, rate in enumerate(rates)
    ]
    runs = [0] * len(rates)
    release = [0] * len(rates)
    for step in range(steps if parallel else 0):
        ready = sorted(p for task, p in enumerate(pending) if p and release[task] <= step)
        for *_, task in ready[:parallel]:
            chosen[step, task] = True
            runs[task] += 1
            release[task] = math.floor(runs[task] / rates[task])
            pending[task] = _priority(rates[task], runs[task] + 1, task)
    return chosen


def _priority(rate: Fraction, run: int, task: int) -> tuple[int, int, int, int]:
    """PD2's priority of a task's next run, `run` counting from 1; the smallest goes first."""
    ideal = run / rate
    deadline = math.ceil(ideal)
    overlaps = ideal.denominator != 1
    group = 0
    if rate >= Fraction(1, 2):
        rest = 1 - rate
        group = math.ceil(math.ceil(deadline * rest) / rest)
    return deadline, not overlaps, -group, task
