r"""Imports folders of images, one per class, with captions made from templates.

    python -m tools.import_folder --folder=imagenet/train --out=data/imagenet --name=train \
        --domain=natural --classnames=imagenet_classes.json
    python -m tools.import_folder --folder=imagenet-sketch --out=data/imagenet --name=sketch \
        --domain=rendition --holdout=1
    python -m tools.import_folder --folder=pacs --out=data/pacs --layout=domain/class \
        --domains=photo:natural,art_painting:rendition,cartoon:rendition,sketch:rendition \
        --holdout=0.2

Each domain becomes the dataset `<out>/<domain>`; the images held out become
`<out>/test/<domain>`, and `<out>/suite.json` lists these as test sets. Which images are held out
depends on the seed and on each image's key only. Image bytes are kept as they are; every image
is decoded once, to be sure that it can be. What is not written is counted: `corrupt_image`,
`unreadable_file`, `not_an_image`.

A template holds {} for the class name and may hold {style} for the domain's name, with its
article: "{style} of a {}" gives "an art painting of a dog". Images take the templates in turn,
by a hash of the key.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from clipdg_jax.data import dataset, engine, files, images, schema, tokenizer, writing
from clipdg_jax.errors import UserError
from tools import cli, summary

TEMPLATES = ("{style} of a {}.", "{style} of the {}.", "a picture of a {}.", "a {}.", "{}")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FILES_PER_SHARD = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """One file of a class: its path below the folder of its domain, and its label."""

    path: str
    label: int


@dataclasses.dataclass(frozen=True)
class FolderShard:
    """Consecutive files of one domain, as input of the shard engine."""

    name: str
    files: tuple[File, ...]

    def __iter__(self) -> Iterator[File]:
        return iter(self.files)


def folder_shards(name: str, chosen: Sequence[File]) -> list[FolderShard]:
    """The files of one domain as input shards of a thousand."""
    starts = range(0, len(chosen), _FILES_PER_SHARD)
    return [
        FolderShard(f"{name}-{i:05d}", tuple(chosen[start : start + _FILES_PER_SHARD]))
        for i, start in enumerate(starts)
    ]


@dataclasses.dataclass(frozen=True)
class ImportFile:
    """The engine's function for one file: a record or a drop."""

    root: Path
    name: str
    domain: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    vocab_size: int

    def __call__(self, file: File) -> schema.Record | engine.Drop:
        if not file.path.lower().endswith(_SUFFIXES):
            return engine.Drop("not_an_image")
        try:
            data = (self.root / file.path).read_bytes()
            images.decode(data)
        except images.ImageError:
            return engine.Drop("corrupt_image")
        except OSError:
            return engine.Drop("unreadable_file")
        key = f"{self.name}/{file.path}"
        template = self.templates[_hash("caption", key) % len(self.templates)]
        caption = template.replace("{}", self.classes[file.label])
        return schema.Record(
            key=key,
            image=data,
            caption=caption,
            tokens=_tokens(caption, self.vocab_size),
            label=file.label,
            domain=self.domain,
        )


@functools.lru_cache(maxsize=100_000)  # a few captions, over and over
def _tokens(caption: str, vocab_size: int):
    return tokenizer.get_tokenizer(vocab_size).encode([caption])[0]


def _hash(purpose: str, key: str) -> int:
    """64 bits that depend on the purpose and the key only."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{key}".encode()).digest()[:8], "big")


def held_out(key: str, share: float, seed: int) -> bool:
    """Whether the image `key` belongs to the share that is kept for testing."""
    return _hash(f"holdout {seed}", key) < share * 2**64


def style_templates(templates: Sequence[str], name: str) -> tuple[str, ...]:
    """The templates with {style} replaced by the domain's name and its article."""
    words = name.replace("_", " ").replace("-", " ").lower()
    article = "an" if words[0] in "aeiou" else "a"
    return tuple(template.replace("{style}", f"{article} {words}") for template in templates)


def _folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def list_files(root: Path, folders: Sequence[str]) -> list[File]:
    """The files of all classes, in order; `folders` are the classes' folders in label order."""
    found = []
    for label, folder in enumerate(folders):
        for directory, inner, names in os.walk(root / folder, followlinks=True):
            inner.sort()
            below = Path(directory).relative_to(root)
            paths = (str(below / name) for name in sorted(names) if not name.startswith("."))
            found += [File(path, label) for path in paths]
    return found


def _class_names(folders: Sequence[str], classnames: str | None) -> tuple[str, ...]:
    """Names of the classes whose folders are given, from a JSON file or from the folders."""
    if classnames is None:
        return tuple(folder.replace("_", " ") for folder in folders)
    named = _read_json(classnames, "a JSON list or object of class names")
    if isinstance(named, list):
        if len(named) != len(folders):
            raise UserError(
                f"{classnames}: names {len(named)} classes; there are {len(folders)} folders"
            )
        named = dict(zip(folders, named, strict=True))
    missing = [folder for folder in folders if folder not in named]
    if missing:
        raise UserError(f"{classnames}: has no name for the folder {missing[0]!r}")
    return tuple(str(named[folder]) for folder in folders)


def _read_json(path: str, what: str) -> Any:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); must be {what}") from error
    if not isinstance(value, list | dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; must be {what}")
    return value


def import_folder(
    folders: Mapping[str, Path],
    domains: Mapping[str, str],
    out: str | Path,
    *,
    classnames: str | None = None,
    templates: Sequence[str] = TEMPLATES,
    holdout: float = 0.0,
    seed: int = 0,
    vocab_size: int = tokenizer.FULL_VOCABULARY,
    target_shard_bytes: int = writing.TARGET_SHARD_BYTES,
    processes: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> list[dataset.Dataset]:
    """Imports one or more trees of class folders; all share one list of classes.

    Args:
        folders: per domain name, the directory that holds its class folders.
        domains: per domain name, natural, rendition, ambiguous or "".
        out: directory of the new datasets and of `suite.json`.
        classnames: JSON file with the names of the classes, a list in the order of the sorted
            folders or an object by folder; by default the folders' names.
        templates: caption templates, see the module's text.
        holdout: share of the images that become test sets, 0 to 1.
        seed: chooses which.
        vocab_size, target_shard_bytes, processes, process_index, process_count: see
            `writing.write_dataset`.

    Returns the datasets, training ones first (none on hosts other than the first).
    Raises UserError.
    """
    out = Path(out)
    class_folders = sorted({name for path in folders.values() for name in _folders(path)})
    if not class_folders:
        raise UserError(f"{next(iter(folders.values()))}: has no class folders")
    classes = _class_names(class_folders, classnames)
    listed = {name: list_files(root, class_folders) for name, root in folders.items()}
    for name, found in listed.items():
        if not found:
            raise UserError(f"{folders[name]}: no files in its class folders")
    written: list[dataset.Dataset] = []
    tests: dict[str, str] = {}
    for split in ("train", "test"):
        if holdout == (1.0 if split == "train" else 0.0):
            continue  # all images are in the other split
        for name, root in folders.items():
            chosen = [
                file
                for file in listed[name]
                if held_out(f"{name}/{file.path}", holdout, seed) == (split == "test")
            ]
            if not chosen:
                raise UserError(
                    f"{root}: too few images: --holdout={holdout} leaves no {split} ones"
                )
            if split == "test":
                tests[name] = domains[name]
            filled = style_templates(templates, name)
            listing = files.digest([dataclasses.astuple(file) for file in chosen])
            result = writing.write_dataset(
                out / ("test" if split == "test" else "") / name,
                folder_shards(name, chosen),
                engine.Each(ImportFile(root, name, domains[name], classes, filled, vocab_size)),
                config={
                    "tool": "import_folder",
                    "domain": domains[name],
                    "templates": list(filled),
                    "holdout": holdout,
                    "seed": seed,
                    "tokenizer_vocab": vocab_size,
                    "classes": files.digest(list(classes)),
                    "files": listing,
                },
                split=split,
                classes=classes,
                domain=domains[name],
                tokenizer=tokenizer.get_tokenizer(vocab_size).hash,
                parents=[{"name": name, "fingerprint": listing}],
                target_shard_bytes=target_shard_bytes,
                processes=processes,
                process_index=process_index,
                process_count=process_count,
                say=print,
            )
            if result is not None:
                written.append(result)
    if tests and process_index == 0:
        add_to_suite(out, tests, templates)
    return written


def add_to_suite(out: Path, tests: Mapping[str, str], templates: Sequence[str]) -> None:
    """Lists the test sets `<out>/test/<name>` (name -> domain) in `<out>/suite.json`.

    Test sets that it lists already stay. The prompts are the caption templates, those with
    {style} once for every test set, so that all test sets of a suite share one set of prompts.
    """
    path = out / "suite.json"
    suite: dict[str, Any] = {"name": out.resolve().name, "templates": [], "test_sets": {}}
    if path.exists():
        suite |= _read_json(str(path), "a suite")
    prompts = [t for name in tests for t in style_templates(templates, name)]
    suite["templates"] = list(dict.fromkeys([*suite["templates"], *prompts]))
    for name, domain in tests.items():
        suite["test_sets"][name] = {"dataset": f"test/{name}", "domain": domain}
    files.write_json(path, suite)


def parse_domains(text: str) -> dict[str, str]:
    """`photo:natural,sketch:rendition` as a dict. Raises UserError naming the bad part."""
    found = {}
    for part in text.split(","):
        name, _, domain = part.strip().partition(":")
        if not name or domain not in schema.DOMAINS:
            raise UserError(
                f"--domains: {part!r} is not <folder>:<domain> with a domain of "
                f"{', '.join(schema.DOMAINS)}"
            )
        found[name] = domain
    return found


def _choose() -> tuple[dict[str, Path], dict[str, str]]:
    """The folders to import and their domains, from the flags."""
    values = flags.FLAGS
    for name in ("folder", "out"):
        if not values[name].value:
            raise UserError(f"--{name}: is missing; see --help")
    root = Path(values.folder)
    if not root.is_dir():
        raise UserError(f"--folder: {root} is not a directory")
    if values.layout == "class":
        if values.domains:
            raise UserError("--domains: belongs to --layout=domain/class; use --domain here")
        name = values.name or root.resolve().name
        return {name: root}, {name: values.domain}
    if values.domain or values.name:
        raise UserError("--domain and --name: belong to --layout=class; use --domains here")
    if not values.domains:
        raise UserError("--domains: is missing; say for example photo:natural,sketch:rendition")
    domains = parse_domains(values.domains)
    present = _folders(root)
    for name in domains:
        if name not in present:
            raise UserError(f"--domains: {root} has no folder {name!r}, only {', '.join(present)}")
    left = [name for name in present if name not in domains]
    if left:
        print(f"left out, as --domains does not name them: {', '.join(left)}")
    return {name: root / name for name in domains}, domains


def main(argv: Sequence[str]) -> None:
    """Runs the import that the flags ask for and prints what became of every file."""
    del argv
    values = flags.FLAGS
    folders, domains = _choose()
    templates = TEMPLATES
    if values.templates:
        templates = tuple(_read_json(values.templates, "a JSON list of templates"))
        for template in templates:
            if not isinstance(template, str) or template.count("{}") != 1:
                raise UserError(f"{values.templates}: {template!r} must hold {{}} once")
    written = import_folder(
        folders,
        domains,
        values.out,
        classnames=values.classnames,
        templates=templates,
        holdout=values.holdout,
        seed=values.seed,
        vocab_size=values.tokenizer_vocab,
        target_shard_bytes=values.target_shard_bytes,
        processes=values.processes,
        process_index=values.process_index,
        process_count=values.process_count,
    )
    for data in written:
        print(summary.counts(data))


if __name__ == "__main__":
    flags.DEFINE_string("folder", None, "The tree of images.")
    flags.DEFINE_enum("layout", "class", ["class", "domain/class"], "What the folders are.")
    flags.DEFINE_string("name", None, "--layout=class: dataset name; default: the folder's.")
    flags.DEFINE_enum("domain", "", ["", *schema.DOMAINS], "--layout=class: domain of all images.")
    flags.DEFINE_string("domains", None, "--layout=domain/class: folder:domain, by commas.")
    flags.DEFINE_string("classnames", None, "JSON file with class names.")
    flags.DEFINE_string("templates", None, "JSON file with a list of caption templates.")
    flags.DEFINE_float("holdout", 0.0, "Share kept for testing.", 0.0, 1.0)
    flags.DEFINE_integer("seed", 0, "Chooses the images kept for testing.")
    cli.define_writing_flags()
    cli.run(main)
