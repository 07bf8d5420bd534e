"""Labelled test sets in the folders that they are distributed as, read in place.

A name is `folder:<layout>:<path>`; the layouts:

    classes       <path>/<class>/**: any tree of class folders
    imagenet      <path>/<WordNet id>/**: ImageNet-A, -R, -Sketch, and the validation images once
                  sorted; or these as they come, <path>/ILSVRC2012_val_*.JPEG, with the challenge's
                  development kit in <path> or beside it
    numbered      <path>/<0..999>/**: ImageNetV2
    objectnet     <path>/images/<object>/** and <path>/mappings/: ObjectNet's 113 classes that
                  ImageNet has too, without the border of two pixels that marks its images
    domainnet     <path>/<class>/** with <path>_test.txt beside it: the listed images of a domain,
                  all where there is no list

What `imagenet` and `numbered` give is numbered as ImageNet's 1000 classes, named by WordNet id,
whichever of them occur. An ObjectNet class is named with the ids that it is mapped to, such as
"Alarm clock (n02708093 n03196217)".
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import scipy.io
from PIL import Image

from clipdg_jax.data import files, imagenet, images, schema, shards
from clipdg_jax.errors import UserError

PREFIX = "folder:"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_BORDER = 2  # pixels of red around ObjectNet's images

_FLAT = "ILSVRC2012_val_*.JPEG"
_KIT = "ILSVRC2012_devkit_t12/data"
_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a layout holds: classes in label order, and (path below the root, label) of each image."""

    classes: tuple[str, ...]
    found: Sequence[tuple[str, int]]


class FolderSource:
    """A folder's images by index: a `resolve.Source`.

    Keys are paths below the root. With `border`, that many pixels are cut from each side and the
    record holds the rest as a PNG; otherwise it holds the file as it is.
    """

    tokenizer = None

    def __init__(self, root: Path, name: str, listing: Listing, border: int = 0):
        self.root, self.name, self._listing, self._border = root, name, listing, border

    @property
    def classes(self) -> tuple[str, ...]:
        return self._listing.classes

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over the classes and every image's path, label and size."""
        sizes = [(p, label, _size(self.root / p)) for p, label in self._listing.found]
        return files.digest([list(self.classes), sizes, self._border])

    def __len__(self) -> int:
        return len(self._listing.found)

    def record(self, index: int) -> schema.Record:
        """Record `index`; raises `shards.RecordError` where the file cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.root}: image {index} of {len(self)}")
        path, label = self._listing.found[index]
        try:
            data = (self.root / path).read_bytes()
            if self._border:
                data = _without_border(data, self._border)
        except (OSError, images.ImageError) as error:
            raise shards.RecordError(f"{self.root / path}: {error}") from error
        return schema.Record(key=path, image=data, label=label)


def open_folder(name: str, data_root: Path) -> FolderSource:
    """Opens `folder:<layout>:<path>`, the path below `data_root` or any.

    Raises:
        UserError: there is no such folder or layout, or what is in it is not of the layout: a class
            too many, a file of the mapping missing. It is named.
    """
    match = re.fullmatch(rf"{PREFIX}([a-z]+):(.+)", name)
    if match is None or match[1] not in LAYOUTS:
        raise UserError(
            f"{name}: folders are named folder:<layout>:<path>, with a layout of "
            f"{', '.join(LAYOUTS)}"
        )
    layout, path = match.groups()
    root = data_root / path  # An absolute path stays as it is.
    if not root.is_dir():
        raise UserError(f"{name}: {root} is not a directory; put the data set, or a link, there")
    listing = LAYOUTS[layout](root)
    if not listing.found:
        raise UserError(f"{root}: holds no images in the layout {layout!r}; name another one")
    return FolderSource(root, path, listing, _BORDER if layout == "objectnet" else 0)


def _classes(root: Path) -> Listing:
    folders = _folders(root)
    found = [(p, label) for label, folder in enumerate(folders) for p in _images(root, folder)]
    return Listing(tuple(folders), found)


def _imagenet(root: Path) -> Listing:
    if any(root.glob(_FLAT)):
        return _flat(root)
    return _by_folder(root, {identity: i for i, identity in enumerate(imagenet.wordnet_ids())})


def _numbered(root: Path) -> Listing:
    return _by_folder(root, {str(i): i for i in range(imagenet.CLASSES)})


def _by_folder(root: Path, labels: dict[str, int]) -> Listing:
    """Class folders that are a subset of ImageNet's classes."""
    folders = _folders(root)
    unknown = [folder for folder in folders if folder not in labels]
    if unknown:
        raise UserError(
            f"{root}: the folder {unknown[0]!r} is none of ImageNet's 1000 classes; remove it, or "
            "name the layout that the data set has"
        )
    found = [(p, labels[folder]) for folder in folders for p in _images(root, folder)]
    return Listing(imagenet.wordnet_ids(), found)


def _flat(root: Path) -> Listing:
    """The validation images in one folder, labelled by the development kit of the challenge."""
    kits = [base / part for base in (root, root.parent) for part in (_KIT, "data", "")]
    kit = next((kit for kit in kits if (kit / _META).is_file()), None)
    if kit is None:
        raise UserError(
            f"{root}: has no {_KIT}/{_META}, in it or beside it; unpack ILSVRC2012_devkit_t12.tar.gz "
            "there, or sort the images into folders named by WordNet id"
        )
    truth = _text(kit / _TRUTH).split()
    paths = sorted(p.name for p in root.glob(_FLAT))
    if len(paths) != len(truth):
        raise UserError(
            f"{root}: holds {len(paths)} validation images, and {kit / _TRUTH} names {len(truth)}"
        )
    # The kit numbers the synsets in its own way; those behind the thousandth are inner nodes.
    table = scipy.io.loadmat(str(kit / _META), squeeze_me=True)["synsets"]
    of_number = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    labels = {identity: i for i, identity in enumerate(imagenet.wordnet_ids())}
    found = [(p, labels[of_number[int(n)]]) for p, n in zip(paths, truth, strict=True)]
    return Listing(imagenet.wordnet_ids(), found)


def _objectnet(root: Path) -> Listing:
    """ObjectNet's classes that are mapped to ImageNet's, by the files of its own distribution.

    `objectnet_to_imagenet_1k.json` gives the names of one or more ImageNet classes for an object,
    `imagenet_to_label_2012_v2` the number of a name in the challenge's order (a line each), and
    `pytorch_to_imagenet_2012_id.json` that number by the class's place in the usual order.
    """
    mappings = root / "mappings"
    objects = _json(mappings / "objectnet_to_imagenet_1k.json")
    labels = _json(mappings / "folder_to_objectnet_label.json")
    place = {n: int(i) for i, n in _json(mappings / "pytorch_to_imagenet_2012_id.json").items()}
    lines = _text(mappings / "imagenet_to_label_2012_v2").splitlines()
    number = {line.strip(): i for i, line in enumerate(lines)}
    ids = imagenet.wordnet_ids()
    classes = {}
    for name, text in objects.items():
        parts = text.split("; ")
        unknown = [part for part in parts if number.get(part) not in place]
        if unknown:
            raise UserError(
                f"{mappings}: {name!r} is mapped to {unknown[0]!r}, which is no class of ImageNet; "
                "unpack objectnet-1.0.zip again"
            )
        places = sorted(place[number[part]] for part in parts)
        classes[name] = f"{name} ({' '.join(ids[i] for i in places)})"
    present = set(_folders(root / "images"))
    unknown = sorted(present - labels.keys())
    if unknown:
        raise UserError(
            f"{root / 'images'}: the folder {unknown[0]!r} is none of ObjectNet's objects; remove it"
        )
    folders = sorted(folder for folder in labels if labels[folder] in classes)
    found = [
        (p, label)
        for label, folder in enumerate(folders)
        if folder in present
        for p in _images(root, f"images/{folder}")
    ]
    return Listing(tuple(classes[labels[folder]] for folder in folders), found)


def _domainnet(root: Path) -> Listing:
    """The images of a domain's list: lines such as `clipart/aircraft_carrier/x.jpg 0`."""
    path = root.with_name(f"{root.name}_test.txt")
    if not path.is_file():
        return _classes(root)
    named: dict[int, str] = {}
    found = []
    for line in _text(path).splitlines():
        image, _, number = line.rpartition(" ")
        parts = image.split("/")
        if len(parts) < 3 or parts[0] != root.name or not number.isdecimal():
            raise UserError(f"{path}: {line!r} is not <domain>/<class>/<image> <label>")
        if named.setdefault(int(number), parts[1]) != parts[1]:
            raise UserError(f"{path}: label {number} is both {named[int(number)]} and {parts[1]}")
        found.append(("/".join(parts[1:]), int(number)))
    if len(set(named.values())) != len(named):
        raise UserError(f"{path}: a class has two labels; fetch the list again")
    unknown = sorted(set(_folders(root)) - set(named.values()))
    if unknown:
        raise UserError(f"{root}: the folder {unknown[0]!r} is no class of {path}; remove it")
    labels = sorted(named)
    of = {number: label for label, number in enumerate(labels)}
    return Listing(tuple(named[n] for n in labels), [(p, of[number]) for p, number in found])


LAYOUTS: dict[str, Callable[[Path], Listing]] = {
    "classes": _classes,
    "imagenet": _imagenet,
    "numbered": _numbered,
    "objectnet": _objectnet,
    "domainnet": _domainnet,
}


def _without_border(data: bytes, border: int) -> bytes:
    """The image less `border` pixels on each side, as a PNG: nothing else of it changes."""
    pixels = images.decode(data)
    if min(pixels.shape[:2]) <= 2 * border:
        raise images.ImageError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels are all border")
    buffer = io.BytesIO()
    cut = Image.fromarray(pixels[border:-border, border:-border])
    cut.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _size(path: Path) -> int:
    """Bytes of a file, -1 for one that a list names and that is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        raise UserError(f"{path}: is not a directory; unpack the whole data set")
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(root: Path, folder: str) -> Iterator[str]:
    """The image files in a folder and below, in order, as paths below `root`."""
    for directory, inner, names in os.walk(root / folder, followlinks=True):
        inner.sort()
        below = Path(directory).relative_to(root)
        for name in sorted(names):
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield (below / name).as_posix()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); unpack the whole data set") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_text(path)))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: is not a JSON object ({error}); unpack it again") from error
