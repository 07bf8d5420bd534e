"""A narrow natural source for fine-tuning, and what lies outside it.

A user's labelled images often come from one place: there, every fish is orange and under water.
In the narrow source a class's context, material and colour nearly always are its own, more so than
in the world that models are pre-trained on, so that a model fine-tuned on it can answer by them.
Outside, they tell little or nothing: natural images whose cues are drawn uniformly, and renditions.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from clipdg_jax.data import dataset, engine, files
from clipdg_jax.data.demo import build, vocabulary
from clipdg_jax.errors import UserError

SUITE = "narrow"
# The suite's test sets that are natural: from the narrow source, and of other conditions.
INSIDE, OTHER = "narrow", "natural_other"

# What keeps the pictures apart from those of the world's own sets, and of each other.
_TRAIN, _VALIDATION, _TEST, _OTHER = (k << 40 for k in range(8, 12))


@dataclasses.dataclass(frozen=True)
class NarrowSpec:
    """What to make of the narrow source.

    Attributes:
      train, validation: records of `narrow/train` and `narrow/validation`.
      test: records of the test set `narrow/test`, of the source itself.
      test_other: records of each other test set: natural images with uniform cues, and each
        rendition style, the held-out one too.
      cue_correlation, colour_correlation: of the source; see `scene.World`.
    """

    train: int = 1500
    validation: int = 1500
    test: int = 2000
    test_other: int = 2000
    cue_correlation: float = 0.9
    colour_correlation: float = 1.0

    def check(self) -> None:
        """Raises UserError, naming the field that is out of range."""
        for field in ("train", "validation", "test", "test_other"):
            if getattr(self, field) < 1:
                raise UserError(f"narrow.{field}: {getattr(self, field)}; use 1 or more")
        for field in ("cue_correlation", "colour_correlation"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"narrow.{field}: {getattr(self, field)}; a probability, 0 to 1")


def parts(spec: NarrowSpec) -> list[build.Part]:
    """The datasets that a spec asks for; their names are paths under the suite's directory."""
    natural, cues = (vocabulary.NATURAL,), (spec.cue_correlation, spec.colour_correlation)
    return [
        build.Part("train", natural, spec.train, _TRAIN, cues=cues),
        build.Part("validation", natural, spec.validation, _VALIDATION, cues=cues),
        build.Part(f"test_{INSIDE}", natural, spec.test, _TEST, "test", cues=cues),
        build.Part(f"test_{OTHER}", natural, spec.test_other, _OTHER, "test", cues=(0.0, 0.0)),
        *(
            build.Part(f"test_{style}", (style,), spec.test_other, _OTHER, "test")
            for style in (*vocabulary.RENDITION_STYLES, vocabulary.HELD_OUT_STYLE)
        ),
    ]


def ensure_narrow(
    root: str | os.PathLike[str],
    world: build.DemoSpec,
    spec: NarrowSpec,
    processes: int | None = None,
) -> None:
    """Makes the datasets and the suite `narrow` under `root` where missing, or goes on with it.

    Args:
      root: directory of the datasets (a run's `data.root`).
      world: the demo world that it is a part of: picture size, seed and tokeniser count.
      spec: what to make.
      processes: worker processes; all cores by default.

    Raises:
      UserError: there is another narrow source, naming what differs; a field is out of range.
    """
    world.check()
    spec.check()
    directory = Path(root) / SUITE
    files.make_directory(directory)
    with files.lock(directory / ".demo.lock", wait=True):
        shared = {field: getattr(world, field) for field in ("size", "seed", "vocab_size")}
        identity = {"world_version": build.WORLD_VERSION, **shared, **dataclasses.asdict(spec)}
        wanted, found = parts(spec), build.read_identity(directory / build.SPEC)
        if found is not None:
            engine.check_identity(directory, found, identity)
            if all((directory / part.name / dataset.MANIFEST).exists() for part in wanted):
                return
        cores = os.cpu_count() or 1
        for part in wanted:
            build.write(directory, part, world, cores if processes is None else processes)
        prefix = "test_"
        build.write_suite(
            directory,
            {p.name.removeprefix(prefix): p.name for p in wanted if p.name.startswith(prefix)},
        )
        files.write_json(directory / build.SPEC, identity)
