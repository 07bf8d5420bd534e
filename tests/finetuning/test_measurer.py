"""What the measurer says of a model and its interpolations, on one device and on eight."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from clipdg_jax.data import images, schema
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import suites
from clipdg_jax.finetuning import drift, measuring, parts
from clipdg_jax.training import sharding
from tests.finetuning import small_models

SIDE, COUNT = 16, 21


class Noise:
    """Images of noise with labels in an own numbering of the classes; counts what is read."""

    name, tokenizer, fingerprint = "noise", None, "noise"

    def __init__(self, classes):
        self.classes, self.reads = classes, 0
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 2, COUNT)

    def __len__(self):
        return COUNT

    def record(self, index):
        self.reads += 1
        file = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(file, "PNG")
        return schema.Record(f"n/{index}", file.getvalue(), label=int(self.labels[index]))


def measurer(source, mesh=None):
    pretrained = small_models.pretrained()
    if mesh is not None:
        placed = jax.device_put(pretrained.params, sharding.replicated(mesh))
        pretrained = dataclasses.replace(pretrained, mesh=mesh, params=placed)
    test_set = suites.TestSet("noise", source, "natural", small_models.TEMPLATES)
    return measuring.Measurer(pretrained, small_models.CLASSES, {"noise": test_set}, batch_size=16)


def image_side(params):
    return {k: v for k, v in params.items() if k.startswith(("visual.", parts.HEAD))}


def test_interpolations_are_measured_in_one_pass_on_any_number_of_devices():
    # Labelled as (car, house): the third and the first of the head's classes.
    source = Noise(("car", "house"))
    before, after = (
        image_side(p) for p in (small_models.pretrained().params, small_models.moved(scale=0.1))
    )
    alphas = (0.0, 0.5, 1.0)
    measure = measurer(source)
    found = measure(after, alphas)
    assert source.reads == COUNT  # The pre-trained features among them.

    pixels = np.stack([images.eval_crop(picture, SIDE) for picture in source.pixels])
    encode = jax.jit(small_models.pretrained().model.encode_image)
    start = np.asarray(encode(before, pixels))
    column = np.array([2, 0])
    for alpha, measured in zip(alphas, found, strict=True):
        params = {k: (1 - alpha) * before[k] + alpha * after[k] for k in after}
        features = np.asarray(encode(params, pixels))
        logits = features @ np.asarray(params["head.weight"]) + np.asarray(params["head.bias"])
        right = logits[:, column].argmax(axis=1) == source.labels
        own = measured["test_sets"]["noise"]
        assert (measured["alpha"], own["n"], own["classes"]) == (alpha, COUNT, 2)
        assert own["top1"] == pytest.approx(right.mean())
        assert own["cosine"] == pytest.approx(drift.cosine(start, features), abs=1e-5)
        assert own["cka"] == pytest.approx(drift.linear_cka(start, features), abs=1e-4)
        assert measured["distance"] == pytest.approx(drift.distances(before, params), rel=1e-4)

    eight = measurer(source, sharding.make_mesh())(after, alphas)
    for one, other in zip(found, eight, strict=True):
        assert other["test_sets"]["noise"] == pytest.approx(one["test_sets"]["noise"], abs=1e-5)


def test_a_class_that_the_head_lacks_is_named():
    with pytest.raises(UserError, match=r"test set noise: holds the class 'fish', which is none"):
        measurer(Noise(("car", "fish")))(image_side(small_models.moved()))


def test_a_class_mapped_to_several_of_the_heads_is_answered_by_the_best_of_them():
    """As ObjectNet's are to ImageNet's; the first is mapped to two, the second to one."""
    ids = ("n00000001", "n00000002", "n00000003")
    source = Noise(("n00000003 n00000001", "n00000002"))
    test_set = suites.TestSet("mapped", source, "natural", small_models.TEMPLATES)
    params = image_side(small_models.moved())
    measure = measuring.Measurer(
        small_models.pretrained(), ids, {"mapped": test_set}, batch_size=16
    )
    (measured,) = measure(params)
    pixels = np.stack([images.eval_crop(picture, SIDE) for picture in source.pixels])
    features = np.asarray(small_models.pretrained().model.encode_image(params, pixels))
    weight, bias = params["head.weight"], params["head.bias"]
    logits = features @ np.asarray(weight)[:, :3] + np.asarray(bias)[:3]
    answer = np.where(np.maximum(logits[:, 0], logits[:, 2]) >= logits[:, 1], 0, 1)
    assert measured["test_sets"]["mapped"]["top1"] == pytest.approx(
        (answer == source.labels).mean()
    )
