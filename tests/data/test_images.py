"""Decoding and crops against Pillow, which is what open_clip's transforms use."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from clipdg_jax.data import images, resize


def picture(height, width, seed=0):
    """A smooth picture with hard edges, where bicubic overshoots most."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    array = np.array(image)
    array[: height // 8] = 255
    array[height // 8 : height // 4, ::2] = 0
    return array


def encoded(array, form="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(array).convert(mode).save(file, form, **options)
    return file.getvalue()


def by_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 60, "subsampling": "4:2:0", "progressive": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "L", {}),
        ("PNG", "I;16", {}),
        ("WEBP", "RGB", {"quality": 80}),
        ("GIF", "P", {}),
    ],
)
def test_decoding_equals_pillow(form, mode, options):
    if mode == "I;16":
        file = io.BytesIO()
        Image.fromarray(np.arange(0, 60000, 1000, np.uint16).reshape(6, 10)).save(file, form)
        data = file.getvalue()
    else:
        data = encoded(picture(41, 57), form, mode, **options)
    decoded = images.decode(data)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, by_pillow(data))


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.decode(encoded(picture(20, 30), exif=exif)).shape == (20, 30, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>not found</html>",
        encoded(picture(64, 64))[:700],
        encoded(picture(64, 64), "PNG")[:300],
        b"\xff\xd8\xff" + bytes(50),
    ],
)
def test_damaged_bytes_raise_image_error(data):
    with pytest.raises(images.ImageError):
        images.decode(data)


def test_too_many_pixels_are_refused(monkeypatch):
    data = encoded(picture(60, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow raises at twice as many
    with pytest.raises(images.ImageError, match="DecompressionBomb"):
        images.decode(data)


@pytest.mark.parametrize(
    ("height", "width", "to_height", "to_width"),
    [
        (247, 251, 224, 224),
        (243, 231, 224, 224),  # rows are filtered first
        (200, 90, 224, 224),
        (480, 640, 64, 85),
        (1700, 1300, 224, 224),
        (64, 64, 64, 64),
        (64, 50, 64, 64),
        (50, 64, 64, 64),
        (1, 7, 5, 3),
        (7, 1, 3, 1),
    ],
)
@pytest.mark.parametrize("values", ["smooth", "extreme"])
def test_resize_is_pillows_to_the_bit(height, width, to_height, to_width, values):
    array = picture(height, width)
    if values == "extreme":  # the filter overshoots both ends of uint8
        array = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), array.shape)
    image = Image.fromarray(array)
    expected = image.resize((to_width, to_height), Image.Resampling.BICUBIC)
    result = resize.resize(array, to_height, to_width)
    np.testing.assert_array_equal(result, np.asarray(expected))
    out = np.empty_like(result)
    assert resize.resize(array, to_height, to_width, out) is out
    np.testing.assert_array_equal(out, result)
    # Any strides: a mirror image, whose mirror image the result is, but for the weights' rounding.
    mirrored = resize.resize(array[:, ::-1], to_height, to_width)
    assert np.abs(mirrored[:, ::-1].astype(int) - result).max() <= 1
    with pytest.raises(ValueError, match="contiguous"):
        resize.resize(array, to_height, to_width, np.empty((to_height, 2 * to_width, 3))[:, ::2])


@pytest.mark.parametrize(("inputs", "outputs"), [(256, 224), (31, 224), (1000, 64), (7, 7)])
def test_weights_stay_within_the_inputs_and_int32(inputs, outputs):
    first, units = resize.weights(inputs, outputs)
    assert first.min() >= 0
    assert first.max() + units.shape[1] <= inputs
    np.testing.assert_allclose(units.sum(1), 2**22, atol=units.shape[1])
    assert np.abs(units).sum(1).max() * 255 + 2**21 < 2**31


def test_eval_crop_is_open_clips():
    for height, width in [(60, 91), (91, 60), (33, 33), (20, 64)]:
        array = picture(height, width)
        if height <= width:
            size = (int(32 * width / height), 32)
        else:
            size = (32, int(32 * height / width))
        image = Image.fromarray(array).resize(size, Image.Resampling.BICUBIC)
        left, top = round((image.width - 32) / 2), round((image.height - 32) / 2)
        expected = np.asarray(image.crop((left, top, left + 32, top + 32)))
        np.testing.assert_array_equal(images.eval_crop(array, 32), expected)


def test_random_boxes_follow_torchvisions_law():
    rng = np.random.default_rng(0)
    height, width, scale, ratio = 300, 400, (0.2, 0.8), (3 / 4, 4 / 3)
    draws = rng.random((4000, images.BOX_DRAWS))
    boxes = np.array([images.random_box(each, height, width, scale, ratio) for each in draws])
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    area = h * w / (height * width)
    assert abs(area.min() - 0.2) < 0.01
    assert area.max() < 0.81
    aspect = w / h
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35
    # Boxes of a small area always fit, so there the aspect ratio stays log-uniform.
    small = np.log(aspect[area < 0.5]) / math.log(4 / 3)
    assert abs(small.mean()) < 0.05
    assert abs(small.std() - 1 / math.sqrt(3)) < 0.03
    # Tops are uniform over what the height leaves.
    assert abs((top / np.maximum(height - h, 1)).mean() - 0.5) < 0.02


def test_a_shape_that_fits_no_ratio_gives_the_largest_central_box():
    draws = np.random.default_rng(0).random(images.BOX_DRAWS)
    box = images.random_box(draws, 10, 100, (0.9, 1.0), (3 / 4, 4 / 3))
    assert box == (0, (100 - 13) // 2, 10, 13)
    box = images.random_box(draws, 100, 10, (0.9, 1.0), (3 / 4, 4 / 3))
    assert box == ((100 - 13) // 2, 0, 13, 10)


def test_train_crop_of_the_whole_image_is_a_resize():
    array = picture(50, 50)
    crop = images.train_crop(array, np.zeros(images.BOX_DRAWS), 32, (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(crop, resize.resize(array, 32, 32))
