"""Trains and measures the methods of a comparison, for one seed: each piece of work once.

In the seed's directory there are

    trainings/<combination>/<point>/         see `fitting`
    measured/<combination>/<point>.json      what was measured of it

A training serves every combination that only differs in what comes after it: `full` is what
`wise_ft` interpolates with.
"""

import concurrent.futures
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipdg_jax.data import files, resolve
from clipdg_jax.evaluation import suites
from clipdg_jax.finetuning import choosing, fitting, measuring, parts, setting
from clipdg_jax.finetuning import combination as combination_lib
from clipdg_jax.finetuning import plan as plan_lib


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One point of a method's sweep, as it was measured.

    Attributes:
      point: the coefficients.
      alpha: of the interpolation; 1 where there is none.
      protection: how strongly it protects, see `Combination.protection`.
      measured: see `measuring.Measurer`; the validation images among its test sets.
      took: see `fitting.fit`; nothing where nothing is trained.
    """

    point: Mapping[str, float]
    alpha: float
    protection: float
    measured: measuring.Measured
    took: Mapping[str, Any]

    @property
    def validation(self) -> float:
        """Accuracy on the validation images."""
        return self.measured["test_sets"][setting.VALIDATION]["top1"]


@dataclasses.dataclass(frozen=True)
class Result:
    """A method's sweep for one seed, and which of its candidates is chosen."""

    candidates: tuple[Candidate, ...]
    chosen: int

    @property
    def best(self) -> Candidate:
        """The chosen one."""
        return self.candidates[self.chosen]


class Comparison:
    """Runs methods for one seed.

    Args:
      config: the run's.
      opened: its datasets.
      pretrained: the model to start from.
      seed: of the order of the images, their crops, and which of them are used.
      directory: of this seed.
      names: the methods that will be run, in their order: while one is measured, the next one's
        step is compiled. It is not while one trains, whose time is told.
      say: told what is going on, line by line.
    """

    def __init__(
        self,
        config: Any,
        opened: setting.Opened,
        pretrained: setting.Pretrained,
        seed: int,
        directory: Path,
        names: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ):
        self._config, self._pretrained, self._seed = config, pretrained, seed
        self._directory, self._say = directory, say
        self._train, validation = setting.split(opened, config, seed)
        self._classes = opened.train.classes
        self._names = names
        self._plans: dict[str, plan_lib.Plan] = {}
        self._compiler = concurrent.futures.ThreadPoolExecutor(1)
        self._compiled: dict[str, concurrent.futures.Future[Any]] = {}
        self._measurer = measuring.Measurer(
            pretrained,
            self._classes,
            {**_by_name(opened), setting.VALIDATION: _as_test_set(validation, opened)},
            (setting.VALIDATION,),
            batch_size=config.eval.batch_size,
            workers=config.eval.workers,
        )

    def run(self, name: str) -> Result:
        """Trains and measures a method, or reads what an earlier call left."""
        folded = combination_lib.fold(name, self._config)
        candidates = [
            Candidate(
                point=point,
                alpha=measured["alpha"],
                protection=folded.protection(point, measured["alpha"]),
                measured=measured,
                took=took,
            )
            for point in folded.points()
            for measured, took in self._measured(folded, point)
        ]
        images = candidates[0].measured["test_sets"][setting.VALIDATION]["n"]
        chosen = choosing.choose(
            [c.validation for c in candidates], images, [c.protection for c in candidates]
        )
        return Result(tuple(candidates), chosen)

    def _measured(
        self, folded: combination_lib.Combination, point: combination_lib.Point
    ) -> list[tuple[measuring.Measured, dict[str, Any]]]:
        """Of each interpolation: what was measured, and what the training took."""
        path = self._measured_path(folded.name, point)
        if not path.exists():
            alphas = folded.after.alphas if folded.after else (1.0,)
            if folded.trains:
                params, took = self._trained(folded.training, point)
            else:
                params, took = self._zero_shot(), {}
            self._say(f"{folded.name}{_told(point)}: measuring")
            self._compile_next()
            # The far end of an interpolation may have been measured as a method of its own.
            plain = self._measured_path(folded.training, point)
            (end,) = json.loads(plain.read_text())["measured"] if plain.exists() else (None,)
            left = [alpha for alpha in alphas if alpha != 1 or end is None]
            measured = iter(self._measurer(params, left))
            each = [next(measured) if alpha in left else end for alpha in alphas]
            files.make_directory(path.parent)
            files.write_json(path, {"measured": each, "took": took})
        found = json.loads(path.read_text())
        return [(measured, found["took"]) for measured in found["measured"]]

    def _measured_path(self, name: str, point: combination_lib.Point) -> Path:
        return self._directory / "measured" / name / f"{_label(point)}.json"

    def _trained(
        self, name: str, point: combination_lib.Point
    ) -> tuple[parts.Params, dict[str, Any]]:
        """The parameters that a training ends with, and what it took."""
        folded = combination_lib.fold(name, self._config)
        start = self._pretrained.params
        if folded.reparam.start:
            first = combination_lib.fold(folded.reparam.start, self._config)
            start = {**start, **self._trained(first.training, first.points()[0])[0]}
        directory = self._training_path(name, point)
        if not (directory / fitting.OUTCOME).exists():
            self._say(f"{name}{_told(point)}: training on {len(self._train)} images")
            self._compile(name).result()
        return fitting.fit(
            self._plan(name),
            point,
            start,
            self._pretrained,
            self._train,
            self._config,
            directory,
        )

    def _training_path(self, name: str, point: combination_lib.Point) -> Path:
        return self._directory / "trainings" / name / _label(point)

    def _plan(self, name: str) -> plan_lib.Plan:
        if name not in self._plans:
            self._plans[name] = plan_lib.make_plan(
                combination_lib.fold(name, self._config),
                self._config,
                self._pretrained.model,
                self._pretrained.mesh,
                examples=len(self._train),
                classes=len(self._classes),
                seed=self._seed,
            )
        return self._plans[name]

    def _compile(self, name: str) -> concurrent.futures.Future[Any]:
        """A training's step, being compiled."""
        if name not in self._compiled:
            plan = self._plan(name)
            self._compiled[name] = self._compiler.submit(lambda: plan.train_step)
        return self._compiled[name]

    def _compile_next(self) -> None:
        """Begins to compile the step of the next training that is still to be made."""
        for name in self._names:
            folded = combination_lib.fold(name, self._config)
            if folded.trains and folded.training not in self._compiled:
                paths = [self._training_path(folded.training, p) for p in folded.points()]
                if not all((path / fitting.OUTCOME).exists() for path in paths):
                    self._compile(folded.training)
                    return

    def _zero_shot(self) -> parts.Params:
        """The pre-trained image tower and the head that its prompts make."""
        tower = plan_lib.image_tower(self._pretrained.model)
        names = (*tower, parts.HEAD_WEIGHT, parts.HEAD_BIAS)
        return {name: self._pretrained.params[name] for name in names}


def _by_name(opened: setting.Opened) -> dict[str, suites.TestSet]:
    return {test_set.name: test_set for test_set in (*opened.inside, *opened.outside)}


def _as_test_set(validation: resolve.Source, opened: setting.Opened) -> suites.TestSet:
    first = opened.inside[0]
    return suites.TestSet(setting.VALIDATION, validation, first.domain, first.templates)


def _label(point: combination_lib.Point) -> str:
    """A point as the name of a directory."""
    return ",".join(f"{name}={value:g}" for name, value in point.items()) or "default"


def _told(point: combination_lib.Point) -> str:
    return f" ({_label(point)})" if point else ""
