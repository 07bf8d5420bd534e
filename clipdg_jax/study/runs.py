"""The finished runs of a study, read from their workdirs; whatever is left out is named.

A run is a pre-training with zero-shot results. Runs can be compared where they were evaluated on
the same test sets, and where nothing but mix, seed and length differs in their configs.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from clipdg_jax.data import mixture
from clipdg_jax.data.files import digest
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import zero_shot
from clipdg_jax.study import cells, progress

# Identity fields in which the runs of one study may differ.
_FREE = ("data.mix", "seed", "steps", "examples", "epochs")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
      name: of its workdir.
      path: the workdir.
      mix: what it was trained on, in the words of its config.
      amounts: records of each dataset in an epoch; weights where `counted` is False.
      counted: whether the mix gives amounts.
      seed: of the run.
      examples: samples seen.
      identity: hash of all identity fields.
      fields: those fields, flat.
      zero_shot: suite -> test set -> measures.
      steps: at its end.
    """

    name: str
    path: Path
    mix: str
    amounts: Mapping[str, Fraction]
    counted: bool
    seed: int
    examples: int
    identity: str
    fields: Mapping[str, Any]
    zero_shot: zero_shot.Results
    steps: int

    @property
    def predictions(self) -> Path:
        """Where the run left its answers to every image, which may be missing."""
        return self.path / f"predictions-{self.steps}.parquet"

    def top1(self, test_set: str) -> float:
        """Accuracy on `<suite>/<test set>`."""
        suite, _, name = test_set.partition("/")
        return float(self.zero_shot[suite][name]["top1"])

    @property
    def setting(self) -> dict[str, Any]:
        """What may not differ within a study."""
        return {
            name: value
            for name, value in self.fields.items()
            if name not in _FREE and not name.startswith("inputs.")
        }


@dataclasses.dataclass(frozen=True)
class Collected:
    """The runs that can be compared, on which suite, and why others are left out, by workdir."""

    runs: tuple[Run, ...]
    suite: str
    left_out: Mapping[str, str]


def collect(places: Sequence[str], suite: str = "") -> Collected:
    """Reads runs and leaves out what cannot be compared with the others.

    Args:
      places: workdirs of sweeps and of runs.
      suite: the one that runs are compared on; "": the one that most of them have.

    Raises:
      UserError: a place is neither, or no run is left.
    """
    left_out: dict[str, str] = {}
    found = []
    for path in _workdirs(places):
        try:
            found.append(read(path))
        except UserError as error:
            left_out[str(path)] = str(error)
    once = _once(found, left_out)
    chosen = suite or _suite(once)
    kept = _of_same_test_sets(once, chosen, left_out)
    if not kept:
        told = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"config.runs: no run is left to report on. {told or 'None was found.'}")
    return Collected(tuple(kept), chosen, left_out)


def read(path: Path) -> Run:
    """A finished run.

    Raises:
      UserError: it is not finished, not readable, or no pre-training with zero-shot results.
    """
    if not progress.complete(path):
        step = progress.last_metrics(path).get("step")
        begun = f"its last logged step is {step}" if step else "it has not begun to train"
        raise UserError(f"is not finished: {begun}; give its command again")
    try:
        results = json.loads((path / "results.json").read_text())
        fields = json.loads((path / "config.json").read_text())["identity"]
        job = results["job"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"has no readable results.json and config.json ({type(error).__name__})"
        ) from error
    if job != "pretrain":
        raise UserError(f"is a run of the job {job}; a report is of pre-trainings")
    if not results.get("zero_shot"):
        raise UserError("was not evaluated; set --config.eval.suites")
    mix = mixture.parse_mix(fields["data.mix"])
    return Run(
        name=path.name,
        path=path,
        mix=fields["data.mix"],
        amounts=dict(zip(mix.names, mix.values, strict=True)),
        counted=mix.amounts,
        seed=int(fields["seed"]),
        examples=int(results["examples"]),
        identity=digest(fields),
        fields=fields,
        zero_shot=results["zero_shot"],
        steps=int(results["steps"]),
    )


def settings(runs: Sequence[Run]) -> dict[str, str]:
    """What tells the settings of runs apart, by the run's path: "" for the most common one."""
    fields = sorted({name for run in runs for name in run.setting})
    values = {str(run.path): {n: json.dumps(run.setting.get(n)) for n in fields} for run in runs}
    usual = collections.Counter(digest(one) for one in values.values()).most_common(1)[0][0]
    base = next(one for one in values.values() if digest(one) == usual)
    return {
        path: ", ".join(f"{n}={one[n]}" for n in fields if one[n] != base[n])
        for path, one in values.items()
    }


def _workdirs(places: Iterable[str]) -> list[Path]:
    """The workdirs that the places stand for, each once; a sweep's are those of its cells."""
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if (path / cells.SWEEP).exists():
            found += [path / name for name in cells.read(path)]
        elif (path / "config.json").exists():
            found.append(path)
        else:
            raise UserError(
                f"config.runs: {place} is neither the workdir of a sweep nor that of a run; give "
                "such as runs/sweep-demo,runs/mix"
            )
    return list(dict.fromkeys(found))


def _once(found: Sequence[Run], left_out: dict[str, str]) -> list[Run]:
    """Of runs with the same mix, seed, length and setting, one, if they are the same run."""
    kept: list[Run] = []
    cells_of = collections.defaultdict(list)
    for run in found:
        what = [run.mix, run.seed, run.examples, run.setting]
        cells_of[digest(what)].append(run)
    for same in cells_of.values():
        if len({run.identity for run in same}) == 1:
            kept.append(same[0])
            left_out |= {str(run.path): f"repeats {same[0].path}" for run in same[1:]}
            continue
        first, other = same[0], next(r for r in same if r.identity != same[0].identity)
        field = next(
            name
            for name in sorted({*first.fields, *other.fields})
            if first.fields.get(name) != other.fields.get(name)
        )
        left_out |= {
            str(run.path): f"{run.mix} with seed {run.seed} is there {len(same)} times and not "
            f"with the same identity: {field} differs; name the runs that are meant"
            for run in same
        }
    return kept


def _of_same_test_sets(runs: Sequence[Run], suite: str, left_out: dict[str, str]) -> list[Run]:
    """Those that were evaluated on the test sets that most were; the others are left out."""
    measured = {str(run.path): tuple(_test_sets(run, suite)) for run in runs}
    counted = collections.Counter(one for one in measured.values() if one)
    if not counted:
        left_out |= {str(run.path): f"was not evaluated on {suite}" for run in runs}
        return []
    usual, _ = counted.most_common(1)[0]
    for run in runs:
        own = measured[str(run.path)]
        if own != usual:
            left_out[str(run.path)] = (
                f"has other test sets than most runs: {_told(own)}, not {_told(usual)}; evaluate "
                "all on the same suite"
            )
    return [run for run in runs if measured[str(run.path)] == usual]


def _told(test_sets: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({images} images)" for name, images in test_sets) or "none"


def _suite(runs: Sequence[Run]) -> str:
    """The suite that most runs have; of several, the one that comes first."""
    counted = collections.Counter(suite for run in runs for suite in run.zero_shot)
    return counted.most_common(1)[0][0] if counted else ""


def _test_sets(run: Run, suite: str) -> list[tuple[str, int]]:
    measured = run.zero_shot.get(suite, {})
    return [(f"{suite}/{name}", measures["n"]) for name, measures in sorted(measured.items())]
