"""Images for evaluation: the same at each pass, decoded once where they are few."""

import itertools

import numpy as np
import pytest

from clipdg_jax.data import images as decoding
from clipdg_jax.evaluation import embedding
from tests.domains import small_datasets


@pytest.fixture
def decoded(monkeypatch):
    """How many images have been decoded."""
    counter, own = itertools.count(), decoding.decode

    def decode(data):
        next(counter)
        return own(data)

    monkeypatch.setattr(decoding, "decode", decode)
    return counter


@pytest.mark.parametrize(("limit", "times"), [(1 << 20, 1), (1000, 3)])
def test_few_images_are_decoded_once(tmp_path, monkeypatch, decoded, limit, times):
    monkeypatch.setattr(embedding, "_KEPT_BYTES", limit)
    source = small_datasets.write(tmp_path / "data", 10, damaged=(3,))
    images = embedding.Images(source, batch_size=4, image_size=8, workers=0)
    assert len(images) == 3
    first, second, third = (list(images) for _ in range(3))
    assert next(decoded) == 10 * times
    for batch, *again in zip(first, second, third, strict=True):
        for other in again:
            for name, column in batch.items():
                np.testing.assert_array_equal(column, other[name])
    assert np.concatenate([batch["valid"] for batch in first]).sum() == 9


def test_a_pass_that_is_given_up_keeps_nothing(tmp_path, decoded):
    source = small_datasets.write(tmp_path / "data", 10)
    images = embedding.Images(source, batch_size=4, image_size=8, workers=0)
    next(iter(images))
    assert len(list(images)) == 3
    assert len(list(images)) == 3
    assert next(decoded) <= 20
