import math
import types

import numpy as np
import pytest

from clipdg_jax.domains.methods import centroid
from clipdg_jax.errors import UserError
from tests.domains import records, renders

RED, GREEN, BLUE = (records.solid(c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
YELLOW, GREY = records.solid((255, 255, 0)), records.solid((80, 80, 80))


class Colours:
    """An encoder whose feature is the direction of an image's mean colour, of black that of grey.

    So every image has a feature of length 1, as in CLIP: what cannot be decoded too.
    """

    image_size = 4
    model = types.SimpleNamespace(config=types.SimpleNamespace(embed_dim=3))

    def features(self, images):
        means = images.reshape(len(images), -1, 3).mean(axis=1)
        means[means.sum(axis=1) == 0] = 1
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def fit(domains, images, scale=100.0):
    train = records.labelled(domains, images=images)
    return centroid.Centroid.fit(train, train, records.context({"scale": scale}, Colours()))


def softmax(*logits):
    powers = [math.exp(x) for x in logits]
    return [x / sum(powers) for x in powers]


def test_probabilities_are_the_closed_form():
    # Centroids (1, 1, 0)/sqrt(2), however often yellow is shown; (0, 0, 1); (1, 1, 1)/sqrt(3).
    fitted = fit([0, 0, 0, 1, 2, 2], [RED, GREEN, YELLOW, BLUE, GREY, GREY], scale=3.0)
    found = fitted.score(records.of(images=[RED, BLUE, GREY, YELLOW]))
    assert found.dtype == np.float32
    half, third = 1 / math.sqrt(2), 1 / math.sqrt(3)
    wanted = [
        softmax(3 * half, 0, 3 * third),
        softmax(0, 3, 3 * third),
        softmax(3 * 2 * half * third, 3 * third, 3),
        softmax(3, 0, 3 * 2 * half * third),
    ]
    np.testing.assert_allclose(found, np.array(wanted)[:, :2], rtol=1e-5)


def test_centroid_is_the_mean_of_features_and_not_of_images():
    fitted = fit([0, 0, 0, 1], [RED, RED, records.solid((0, 30, 0)), BLUE], scale=1.0)
    np.testing.assert_allclose(fitted.centroids[0], np.array([2, 1, 0]) / math.sqrt(5), rtol=1e-6)


def test_two_domains_share_all_of_the_probability_at_any_scale():
    images = [RED, records.solid((200, 40, 90)), records.solid((120, 0, 130)), BLUE]
    natural = []
    for scale in (0.5, 20.0):
        found = fit([0, 1], [RED, BLUE], scale).score(records.of(images=images))
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
        natural.append(found[:, 0])
    np.testing.assert_allclose(natural[0][0], 1 / (1 + math.exp(-0.5)), rtol=1e-6)
    assert (np.argsort(natural[0]) == [3, 2, 1, 0]).all()
    assert (np.argsort(natural[1]) == [3, 2, 1, 0]).all()
    # A domain without labels: natural and ambiguous only.
    assert (fit([0, 2], [RED, BLUE]).score(records.of(images=images))[:, 1] == 0).all()


def test_images_that_cannot_be_decoded_are_left_out_of_the_means():
    clean = fit([0, 0, 1], [RED, GREEN, BLUE])
    dirty = fit([1, 0, 0, 0, 1], [b"no image", RED, b"", GREEN, BLUE])
    np.testing.assert_array_equal(dirty.centroids, clean.centroids)


def test_what_is_refused():
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match=r"centroid\.scale: .* positive"):
            fit([0, 1], [RED, BLUE], scale)
    with pytest.raises(UserError, match="needs two"):
        fit([1, 1], [RED, BLUE])
    with pytest.raises(UserError, match="needs two"):
        fit([0, 1], [RED, b"no image"])


def test_saved_and_loaded_with_its_encoder_it_scores_the_same(tmp_path):
    train, context = renders.labelled((6, 6, 2)), renders.context({"scale": 50.0}, tmp_path)
    fitted = centroid.Centroid.fit(train, train, context)
    (inputs,) = renders.labelled((3, 3, 3), first=100).batches()
    scores = fitted.score(inputs)
    assert np.ptp(scores) > 1e-3
    again = centroid.Centroid.load(fitted.state(), context.mesh)
    np.testing.assert_array_equal(again.score(inputs), scores)
    assert again.describe() == "nearest of 3 class centroids of the encoder's frozen features"
