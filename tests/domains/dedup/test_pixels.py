"""The comparison of thumbnails: what is the same picture, and what is not."""

import cv2
import numpy as np
import pytest

from clipdg_jax.data import demo
from clipdg_jax.domains.dedup import hashes, pixels

SIZE = 80


@pytest.fixture(scope="module")
def images():
    return [demo.render(demo.World(SIZE), style, 1, 5).image for style in demo.STYLES]


def compare(first, second, mirrored=False):
    sides = [
        (
            np.stack([hashes.thumbnail(np.ascontiguousarray(i)) for i in side]),
            np.stack([hashes.colours(np.ascontiguousarray(i)) for i in side]),
        )
        for side in (first, second)
    ]
    return pixels.correlation(*sides, np.full(len(first), mirrored))


@pytest.mark.parametrize("corner", [(0, 0), (0, 2), (2, 4), (4, 1), (4, 4)])
def test_a_cut_of_a_twentieth_is_the_same_picture_either_way(images, corner):
    top, left = corner
    cut = [image[top : top + SIZE - 4, left : left + SIZE - 4] for image in images]
    assert compare(images, cut).min() > 0.95  # Offsets between those that are tried cost most.
    np.testing.assert_allclose(compare(images, cut), compare(cut, images), atol=1e-5)
    # Without looking for the cut it would not be.
    plain = [np.corrcoef(*(hashes.thumbnail(np.ascontiguousarray(i)).ravel() for i in pair))[0, 1]
             for pair in zip(images, cut, strict=True)]  # fmt: skip
    assert np.min(plain) < np.min(compare(images, cut)) - 0.02


def test_mirrored_recoloured_and_shrunk_are_the_same_picture(images):
    np.testing.assert_allclose(compare(images, images), 1, atol=1e-5)
    assert compare(images, [image[:, ::-1] for image in images], mirrored=True).min() > 0.99
    assert compare(images, [image[:, ::-1] for image in images]).max() < 0.95
    darker = [(0.8 * image + 10).astype(np.uint8) for image in images]
    assert compare(images, darker).min() > 0.99
    small = [cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA) for image in images]
    assert compare(images, small).min() > 0.97


def test_other_pictures_and_other_colours_are_not(images):
    for shift in range(1, len(images)):
        assert compare(images, images[shift:] + images[:shift]).max() < 0.9
    discs = []
    for colour in ((200, 0, 0), (0, 102, 0)):  # Of one luminance.
        disc = np.full((SIZE, SIZE, 3), 255, np.uint8)
        discs.append(cv2.circle(disc, (30, 45), 25, colour, -1))
    assert np.abs(np.subtract(*(hashes.thumbnail(d).astype(int) for d in discs))).max() <= 1
    assert compare(discs[:1], discs[1:])[0] < 0.9


def test_no_structure_is_no_copy(images):
    flat = [np.full_like(images[0], value) for value in (0, 130, 255)]
    assert compare(flat, flat).tolist() == [0, 0, 0]
    assert compare(flat, images[:3]).tolist() == [0, 0, 0]


def test_many_pairs_are_as_few(images):
    many = [images[i % len(images)] for i in range(300)]
    np.testing.assert_allclose(compare(many, many[1:] + many[:1])[:6],
                               compare(many[:6], many[1:7]), atol=1e-5)  # fmt: skip
