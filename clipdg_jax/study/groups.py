"""Runs that differ in their seed only as groups, and resamples of the groups' accuracies."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import paired, stats
from clipdg_jax.study import resampling
from clipdg_jax.study import runs as runs_lib

DOMAINS = ("natural", "rendition")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a report is asked for.

    Attributes:
      composition: dataset -> shares of natural and of rendition records in it.
      baselines: pattern of the mixes that the line of effective robustness is fitted to; "": none.
      reference: pattern of the mixes that relative accuracy refers to; "": none.
      csv: a file with columns model, set, accuracy, whose models are baselines too; "": none.
      resamples, seed: of the intervals, which are at 95 %.
    """

    composition: Mapping[str, tuple[float, float]]
    baselines: str = ""
    reference: str = ""
    csv: str = ""
    resamples: int = 2000
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
      label: the mix, its setting where that is not the usual one, and the samples seen where mixes
        of the same name differ in them.
      mix: the mix alone.
      runs: of it, by seed.
      usual: whether its setting is that of most runs.
      counts: natural and rendition records in an epoch, or their weights where `counted` is False;
        None where a dataset's composition is not known.
    """

    label: str
    mix: str
    runs: tuple[runs_lib.Run, ...]
    usual: bool
    counts: tuple[float, float] | None
    counted: bool
    examples: int

    @property
    def pure(self) -> bool:
        """Whether all its datasets are named after their domain."""
        return all(part.partition("=")[0] in DOMAINS for part in self.mix.split(","))

    @property
    def natural_share(self) -> float:
        """Of natural records, among those of either domain; needs `counts`."""
        assert self.counts is not None
        return self.counts[0] / sum(self.counts)

    def matches(self, pattern: str) -> bool:
        """Whether the mix is of a pattern, such as pool=*."""
        return fnmatch.fnmatchcase(self.mix, pattern)


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """Runs in groups, and resamples of their accuracies.

    Attributes:
      groups: the groups, in the order of their first runs.
      test_sets: name -> measures of the first run (domain, n, chance), of the suite compared on.
      others: names of test sets of other suites that all runs were evaluated on.
      top1: of each group and test set, the others last; means over seeds.
      errors: their standard errors over seeds; NaN for one seed.
      means: of each group: natural, rendition, and both corrected for chance.
      samples: resamples of the same.
      images: test images of each domain.
      paired: whether images were resampled, which takes every run's predictions.
    """

    groups: tuple[Group, ...]
    test_sets: Mapping[str, Mapping[str, Any]]
    others: tuple[str, ...]
    top1: Float[np.ndarray, "groups sets"]
    errors: Float[np.ndarray, "groups sets"]
    means: Float[np.ndarray, "groups 4"]
    samples: Float[np.ndarray, "resamples groups 4"]
    images: tuple[int, int]
    paired: bool


def label_of(mix: str) -> str:
    """A mix without what it has none of: "natural=32k" for "natural=32k,rendition=0"."""
    parts = [part.strip() for part in mix.split(",")]
    kept = [part for part in parts if float(part.rpartition("=")[2].rstrip("kMB").replace("_", ""))]
    return ",".join(kept)


def make(runs: Sequence[runs_lib.Run], suite: str, options: Options) -> Study:
    """Groups the runs and resamples their accuracies on a suite's test sets.

    Raises:
      UserError: the suite has no test set of one of the domains.
    """
    test_sets = {f"{suite}/{name}": one for name, one in runs[0].zero_shot[suite].items()}
    domains = [one["domain"] for one in test_sets.values()]
    for domain in DOMAINS:
        if domain not in domains:
            raise UserError(
                f"config.suite: {suite!r} has no {domain} test set; a report compares both domains"
            )
    groups = _groups(runs, options)
    ordered = [run for group in groups for run in group.runs]
    of_group = np.repeat(np.arange(len(groups)), [len(group.runs) for group in groups])
    others = _shared(runs, suite)
    every = np.array([[run.top1(name) for name in (*test_sets, *others)] for run in ordered])
    top1 = every[:, : len(test_sets)]
    rng = np.random.default_rng(options.seed)
    drawn, together = _resampled(ordered, test_sets, top1, options.resamples, rng)
    weights, offsets = _measures(test_sets)
    values = top1 @ weights + offsets
    samples = resampling.group_means(drawn @ weights + offsets, of_group)
    samples += resampling.over_seeds(values, of_group, options.resamples, rng)
    images = tuple(
        sum(one["n"] for one in test_sets.values() if one["domain"] == domain) for domain in DOMAINS
    )
    return Study(
        groups=groups,
        test_sets=test_sets,
        others=others,
        top1=resampling.group_means(every, of_group),
        errors=_standard_errors(every, of_group),
        means=resampling.group_means(values, of_group),
        samples=samples,
        images=(images[0], images[1]),
        paired=together,
    )


def _shared(runs: Sequence[runs_lib.Run], suite: str) -> tuple[str, ...]:
    """Test sets of other suites that all runs were evaluated on."""
    of = [{f"{s}/{name}" for s, one in run.zero_shot.items() for name in one} for run in runs]
    return tuple(sorted(n for n in set.intersection(*of) if not n.startswith(f"{suite}/")))


def _groups(runs: Sequence[runs_lib.Run], options: Options) -> tuple[Group, ...]:
    settings = runs_lib.settings(runs)
    members = collections.defaultdict(list)
    for run in runs:
        members[label_of(run.mix), settings[str(run.path)], run.examples].append(run)
    names = collections.Counter((mix, setting) for mix, setting, _ in members)
    groups = []
    for (mix, setting, examples), own in members.items():
        label = mix
        if names[mix, setting] > 1:
            label += f" ({examples:,} seen)"
        if setting:
            label += f" [{setting}]"
        by_seed = tuple(sorted(own, key=lambda run: run.seed))
        counts = _counts(own[0], options.composition)
        groups.append(Group(label, mix, by_seed, not setting, counts, own[0].counted, examples))
    return tuple(groups)


def _counts(
    run: runs_lib.Run, composition: Mapping[str, tuple[float, float]]
) -> tuple[float, float] | None:
    if any(name not in composition for name, amount in run.amounts.items() if amount):
        return None
    used = {name: float(amount) for name, amount in run.amounts.items() if amount}
    natural, rendition = (
        math.fsum(amount * composition[name][column] for name, amount in used.items())
        for column in range(len(DOMAINS))
    )
    return natural, rendition


def _measures(
    test_sets: Mapping[str, Mapping[str, Any]],
) -> tuple[Float[np.ndarray, "sets 4"], Float[np.ndarray, " 4"]]:
    """What makes the four measures of the accuracies: top1 @ weights + offsets."""
    weights, offsets = np.zeros((len(test_sets), 4)), np.zeros(4)
    for column, domain in enumerate(DOMAINS):
        rows = [i for i, one in enumerate(test_sets.values()) if one["domain"] == domain]
        for i in rows:
            chance = list(test_sets.values())[i]["chance"]
            weights[i, column] = 1 / len(rows)
            weights[i, column + 2] = 1 / len(rows) / (1 - chance)
            offsets[column + 2] -= chance / len(rows) / (1 - chance)
    return weights, offsets


def _standard_errors(
    top1: Float[np.ndarray, "runs sets"], of_group: Int[np.ndarray, " runs"]
) -> Float[np.ndarray, "groups sets"]:
    return np.array(
        [
            [stats.mean_and_standard_error(column.tolist())[1] for column in top1[of_group == g].T]
            for g in range(int(of_group.max()) + 1)
        ]
    )


def _resampled(
    runs: Sequence[runs_lib.Run],
    test_sets: Mapping[str, Mapping[str, Any]],
    top1: Float[np.ndarray, "runs sets"],
    resamples: int,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "resamples runs sets"], bool]:
    """Accuracies on resampled images, and whether they are the same images for all runs."""
    answers = _answers(runs, list(test_sets))
    drawn = [
        resampling.over_images(answers[name], resamples, rng)
        if answers is not None
        else resampling.over_counts(top1[:, column], one["n"], resamples, rng)
        for column, (name, one) in enumerate(test_sets.items())
    ]
    return np.stack(drawn, axis=2), answers is not None


def _answers(runs: Sequence[runs_lib.Run], names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Test set -> bool [runs, images], in the order of the images' keys; None if one run has none.

    Raises UserError where the images of two runs are not the same.
    """
    if not all(run.predictions.exists() for run in runs):
        return None
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    first: dict[str, list[str]] = {}
    for run in runs:
        read = dict(paired.read(run.predictions))
        for name in names:
            if name not in read:
                raise UserError(f"{run.predictions}: has no {name}; evaluate the run again")
            keys, _, right = read[name]
            order = np.argsort(keys)
            if first.setdefault(name, keys[order].tolist()) != keys[order].tolist():
                raise UserError(
                    f"{run.predictions}: {name} does not hold the images that it holds for "
                    f"{runs[0].name}; evaluate both on the same data"
                )
            found[name].append(right[order])
    return {name: np.stack(rows) for name, rows in found.items()}
