"""Content and perceptual hashes against references, and what leaves them alone."""

import hashlib

import cv2
import numpy as np
import pytest
from scipy import fft

from clipdg_jax.data import demo
from clipdg_jax.domains.dedup import hashes


def pictures(count=6, size=64):
    return [demo.render(demo.World(size), "natural", 3, i).image for i in range(count)]


def test_the_hash_is_that_of_the_definition():
    for image in pictures():
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(float)
        low = fft.dctn(small, norm="ortho")[1:9, 1:9].ravel()
        bits = "".join("1" if value > np.median(low) else "0" for value in low)
        assert hashes.phash(image) == int(bits, 2)


def test_the_mirrors_hash_is_the_hash_of_the_mirror_image():
    thumbnails = np.stack([hashes.thumbnail(image) for image in pictures()])
    own, mirror = hashes.phashes(thumbnails)
    flipped, back = hashes.phashes(thumbnails[:, :, ::-1])
    np.testing.assert_array_equal(mirror, flipped)
    np.testing.assert_array_equal(back, own)
    assert (own != mirror).all()


def test_copies_are_near_and_others_far():
    images = pictures()
    own = np.array([hashes.phash(image) for image in images], np.uint64)
    shrunk = [cv2.resize(i, (40, 40), interpolation=cv2.INTER_AREA) for i in images]
    encoded = [cv2.imencode(".jpg", i, [cv2.IMWRITE_JPEG_QUALITY, 50])[1] for i in images]
    for copies in (shrunk, [cv2.imdecode(data, cv2.IMREAD_COLOR) for data in encoded]):
        near = np.array([hashes.phash(image) for image in copies], np.uint64)
        assert hashes.distance(own, near).max() <= 6
    for a in range(len(own)):
        others = np.delete(own, a)
        assert hashes.distance(np.full_like(others, own[a]), others).min() > 12


@pytest.mark.parametrize("colour", [0, 77, 255])
def test_an_image_without_structure_has_no_hash(colour):
    assert hashes.phash(np.full((50, 70, 3), colour, np.uint8)) == 0


def test_distances_and_content():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 1 << 63, (2, 50), dtype=np.uint64)
    expected = [bin(a ^ b).count("1") for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert hashes.distance(first, second).tolist() == expected
    assert hashes.sha256(b"picture") == hashlib.sha256(b"picture").hexdigest()


def test_thumbnails_of_any_shape():
    tall = np.zeros((200, 3, 3), np.uint8)
    tall[:100] = (255, 0, 0)
    assert hashes.thumbnail(tall).shape == (32, 32)
    assert hashes.thumbnail(tall)[0, 0] == 76  # 0.299 x 255
    chroma = hashes.colours(tall)
    assert chroma.shape == (8, 8, 2)
    assert chroma[0, 0].tolist() == [255, 85]
    assert chroma[-1, 0].tolist() == [128, 128]
