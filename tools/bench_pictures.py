"""Pictures of the demo world for the benchmarks: JPEGs with captions, and tars of them."""

from __future__ import annotations

import io
import pathlib
import tarfile
from collections.abc import Sequence

from PIL import Image

from clipdg_jax.data import demo

Picture = tuple[bytes, str]  # The JPEG and its caption.


def draw(count: int, size: int = 256) -> list[Picture]:
    """Three natural images to one rendition, of `size` pixels a side, at quality 95."""
    world = demo.World(size, 0.6)
    pictures = []
    for number in range(count):
        styles = demo.RENDITION_STYLES
        style = styles[number // 4 % len(styles)] if number % 4 == 3 else demo.NATURAL
        example = demo.render(world, style, 0, number)
        encoded = io.BytesIO()
        Image.fromarray(example.image).save(encoded, "jpeg", quality=95)
        pictures.append((encoded.getvalue(), example.caption))
    return pictures


def write_tars(folder: pathlib.Path, pictures: Sequence[Picture], tars: int, records: int) -> None:
    """Writes `records` in all, the pictures over and over, to tars as img2dataset's."""
    folder.mkdir(parents=True)
    for tar in range(tars):
        with tarfile.open(folder / f"{tar:05d}.tar", "w") as archive:
            for number in range(tar, records, tars):
                image, caption = pictures[number % len(pictures)]
                for suffix, data in (("jpg", image), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
