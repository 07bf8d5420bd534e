"""The demo world on disk: training sets, a raw pool, test sets and suites, made when missing."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from clipdg_jax.data import dataset, engine, files, schema, tokenizer, writing
from clipdg_jax.data.demo import captions, copies, scene, vocabulary, world
from clipdg_jax.errors import UserError

# Raised with every change to what the renderer draws: older data is then refused, not mixed in.
WORLD_VERSION = 1

SPEC = "demo.json"
# One ensemble for every test set, as with OpenAI's templates: half of it names no medium.
TEMPLATES: tuple[str, ...] = (
    "{}",
    "a {}",
    "the {}",
    "a picture of a {}",
    "a photo of a {}",
    "a drawing of a {}",
    "a painting of a {}",
    "an illustration of a {}",
)

_SHARD_RECORDS = 1000  # of an input shard: the unit of work and of resuming
# Of the pool's shards: several, so that its curation is spread over processes and resumes.
_POOL_SHARD_BYTES = 4 << 20
_JPEG_QUALITY = 92
# What keeps the pictures of the sets disjoint: each set's seed is the world's plus a multiple.
_TRAIN, _TEST, _POOL, _TEST_POOL = (k << 40 for k in range(4))


@dataclasses.dataclass(frozen=True)
class DemoSpec:
    """What to make of the demo world; by default the pool that the main job's data come from.

    Attributes:
      natural, rendition: records of the training sets `natural` and `rendition` (the four
        training styles in equal parts); 0 leaves one out.
      ambiguous: records of the set `ambiguous`; 0 leaves it out.
      pool: records of the set `pool`, raw web data of all three domains; 0 leaves it out.
      pool_copies: share of the pool's records that are copies of earlier ones (see `copies`).
      test_pool: records of `test/pool`, drawn as the pool is; 0 leaves it out.
      test_natural: records of `test/natural`.
      test_style: records of each rendition style's test set, the held-out style's too.
      size: side of the stored pictures in pixels.
      cue_correlation: see `scene.World`.
      seed: of the world, below 2^40.
      vocab_size: of the tokeniser.
    """

    natural: int = 0
    rendition: int = 0
    ambiguous: int = 0
    pool: int = 24_000
    pool_copies: float = 0.1
    test_pool: int = 0
    test_natural: int = 2_400
    test_style: int = 600
    size: int = 40
    cue_correlation: float = 0.9
    seed: int = 0
    vocab_size: int = 2048

    def check(self) -> None:
        """Raises UserError, naming the field that is out of range."""
        for field in ("natural", "rendition", "ambiguous", "pool", "test_pool"):
            if getattr(self, field) < 0:
                raise UserError(f"demo.{field}: {getattr(self, field)} is negative; 0 or more")
        for field in ("test_natural", "test_style"):
            if getattr(self, field) < 1:
                raise UserError(f"demo.{field}: {getattr(self, field)}; a test set needs 1 or more")
        if not 16 <= self.size <= 1024:
            raise UserError(f"demo.size: {self.size} is out of range; 16 to 1024 pixels")
        if not 0 <= self.cue_correlation <= 1:
            raise UserError(f"demo.cue_correlation: {self.cue_correlation}; a probability, 0 to 1")
        if not 0 <= self.pool_copies <= 0.9:
            raise UserError(f"demo.pool_copies: {self.pool_copies}; a share of the pool, 0 to 0.9")
        if not 0 <= self.seed < 1 << 40:
            raise UserError(f"demo.seed: {self.seed} is out of range; 0 to 2^40 - 1")


# The pool's shares. The web's ambiguous share is higher, but of no use to any training.
_POOL_SHARES: dict[str, float] = {
    vocabulary.NATURAL: 0.56,
    **dict.fromkeys(vocabulary.RENDITION_STYLES, 0.06),
    vocabulary.AMBIGUOUS: 0.2,
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One dataset of the demo world.

    Attributes:
      name: path under the root.
      styles: record i has style `styles[i % len(styles)]`; none: drawn by the pool's shares.
      count: number of records.
      offset: added to the world's seed.
      split: of the manifest.
      copies: share of the records that are copies of earlier ones.
      cues: the cue and colour correlations (see `scene.World`), where they are not the spec's
        and 0.
    """

    name: str
    styles: tuple[str, ...]
    count: int
    offset: int
    split: str = "train"
    copies: float = 0.0
    cues: tuple[float, float] | None = None

    @property
    def domain(self) -> str:
        """The records' common domain, or "" for a mixture."""
        domains = {vocabulary.domain_of(style) for style in self.styles}
        return domains.pop() if len(domains) == 1 else ""

    def style(self, seed: int, number: int) -> str:
        """The style of record `number` in the world of this seed."""
        if self.styles:
            return self.styles[number % len(self.styles)]
        return scene.draw_style(_POOL_SHARES, seed + self.offset, number)


def parts(spec: DemoSpec) -> list[Part]:
    """The datasets that a spec asks for."""
    natural, ambiguous = (vocabulary.NATURAL,), (vocabulary.AMBIGUOUS,)
    renditions, held_out = vocabulary.RENDITION_STYLES, vocabulary.HELD_OUT_STYLE
    wanted = [
        Part("natural", natural, spec.natural, _TRAIN),
        Part("rendition", renditions, spec.rendition, _TRAIN),
        Part("ambiguous", ambiguous, spec.ambiguous, _TRAIN),
        Part("pool", (), spec.pool, _POOL, copies=spec.pool_copies),
        Part("test/pool", (), spec.test_pool, _TEST_POOL, "test"),
        Part("test/natural", natural, spec.test_natural, _TEST, "test"),
    ]
    for style in (*renditions, held_out):
        wanted.append(Part(f"test/{style}", (style,), spec.test_style, _TEST, "test"))
    return [part for part in wanted if part.count]


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Makes the records of one part from their numbers; the shard engine's function."""

    part: Part
    spec: DemoSpec

    def __call__(self, numbers: Iterator[int]) -> Iterator[schema.Record]:
        cv2.setNumThreads(1)  # the pictures are small, and the processes many
        tokens = tokenizer.get_tokenizer(self.spec.vocab_size)
        drawn = scene.World(self.spec.size, *(self.part.cues or (self.spec.cue_correlation, 0.0)))
        for number in numbers:
            yield self._record(number, drawn, tokens)

    def _record(
        self, number: int, drawn: scene.World, tokens: tokenizer.Tokenizer
    ) -> schema.Record:
        seed = self.spec.seed + self.part.offset
        copy = copies.plan(seed, number, self.part.copies)
        shown = number if copy is None else copy.of
        style = self.part.style(self.spec.seed, shown)
        example = world.render(drawn, style, seed, shown)
        image, caption, kind = encode_jpeg(example.image), example.caption, example.caption_kind
        meta = {**example.scene.meta(), "caption": kind}
        if copy is not None:
            image = copies.make(copy, image, seed, number, encode_jpeg)
            if not copy.same_caption:
                again = dataclasses.replace(example.scene, index=number)
                caption, meta["caption"] = captions.caption(again)
            meta |= {"copy_of": _key(copy.of), "copy": copy.kind}
        return schema.Record(
            key=_key(number),
            image=image,
            caption=caption,
            tokens=tokens.encode([caption])[0],
            label=example.scene.label,
            domain=example.scene.domain,
            meta=meta,
        )


def _key(number: int) -> str:
    shard, member = divmod(number, _SHARD_RECORDS)
    return f"{shard:05d}/{member:05d}.jpg"


def encode_jpeg(image: np.ndarray, quality: int = _JPEG_QUALITY) -> bytes:
    """A uint8 RGB image as JPEG, as the demo world stores it."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape}")
    return data.tobytes()


def ensure(root: str | os.PathLike[str], spec: DemoSpec, processes: int | None = None) -> None:
    """Makes the demo world under `root` where it is missing, or goes on making it.

    Writes the datasets of `parts(spec)` and the suites `demo` (natural and the four training
    styles) and `demo_heldout`; `demo.json`, written last, marks it complete. Other processes
    that want the same world meanwhile wait for it.

    Args:
      root: directory of the datasets (a run's `data.root`).
      spec: what to make.
      processes: worker processes; all cores by default.

    Raises:
      UserError: `root` holds a demo world of another spec, naming what differs; a field of the
        spec is out of range; no space left.
    """
    spec.check()
    root = Path(root)
    files.make_directory(root)
    if _complete(root, spec):
        return
    with files.lock(root / ".demo.lock", wait=True):
        if _complete(root, spec):
            return
        cores = os.cpu_count() or 1
        for part in parts(spec):
            write(root, part, spec, cores if processes is None else processes)
        _write_suites(root)
        files.write_json(root / SPEC, _identity(spec))


def _identity(spec: DemoSpec) -> dict[str, Any]:
    return {"world_version": WORLD_VERSION, **dataclasses.asdict(spec)}


def read_identity(path: Path) -> dict[str, Any] | None:
    """What a marker of completion says; None where there is none. UserError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({error}); remove {path.parent} to make it anew"
        ) from error


def _complete(root: Path, spec: DemoSpec) -> bool:
    """Whether the world is there whole; UserError when another one is."""
    found = read_identity(root / SPEC)
    if found is None:
        return False
    # Worlds that were made before there were copies have none.
    engine.check_identity(root, {"pool_copies": 0.0, **found}, _identity(spec))
    return all((root / part.name / dataset.MANIFEST).exists() for part in parts(spec))


def write(root: Path, part: Part, spec: DemoSpec, processes: int) -> None:
    """Writes one part under `root`, or goes on writing it; a complete one stays as it is."""
    source = engine.index_shards(part.count, _SHARD_RECORDS)
    writing.write_dataset(
        root / part.name,
        source,
        _Maker(part, spec),
        config={
            "world_version": WORLD_VERSION,
            "records": part.count,
            "size": spec.size,
            "cue_correlation": spec.cue_correlation,
            "seed": spec.seed,
            "vocab_size": spec.vocab_size,
            **({"copies": part.copies} if part.copies else {}),
            **({"cues": list(part.cues)} if part.cues else {}),
        },
        split=part.split,
        classes=vocabulary.CLASSES,
        domain=part.domain,
        tokenizer=tokenizer.get_tokenizer(spec.vocab_size).hash,
        target_shard_bytes=writing.TARGET_SHARD_BYTES if part.styles else _POOL_SHARD_BYTES,
        processes=processes if len(source) > 1 else 0,  # a process takes a second to start
        wait=True,
    )


def _write_suites(root: Path) -> None:
    training = (vocabulary.NATURAL, *vocabulary.RENDITION_STYLES)
    for name, styles in (("demo", training), ("demo_heldout", (vocabulary.HELD_OUT_STYLE,))):
        write_suite(root / name, {style: f"../test/{style}" for style in styles})


def write_suite(directory: Path, datasets: Mapping[str, str]) -> None:
    """Writes a suite of these test sets (name, a style or a kind of natural image -> dataset)."""
    test_sets = {
        name: {
            "dataset": path,
            "domain": vocabulary.domain_of(
                name if name in vocabulary.STYLES else vocabulary.NATURAL
            ),
        }
        for name, path in datasets.items()
    }
    files.make_directory(directory)
    suite = {"name": directory.name, "templates": list(TEMPLATES), "test_sets": test_sets}
    files.write_json(directory / "suite.json", suite)
