"""The evaluator on a model whose answers are known: it reads the colour and names it."""

import io
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clipdg_jax.data import demo, schema, tokenizer
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import suites, tables, zero_shot
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import sharding

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
}
CLASSES = tuple(COLOURS)
TEMPLATES = ("a photo of a {}.", "{}")


class ColourModel:
    """Class embeddings are one-hot; an image's embedding weighs its channels, dark is "black"."""

    config = types.SimpleNamespace(
        vision=types.SimpleNamespace(image_size=8), text=types.SimpleNamespace(context_length=4)
    )

    def shapes(self):
        return {"gain": jax.ShapeDtypeStruct((), jnp.float32)}

    def encode_image(self, params, image):
        channels = image.astype(jnp.float32).mean(axis=(1, 2)) / 255
        dark = 1 - channels.max(axis=1, keepdims=True)
        return self._unit(params["gain"] * jnp.concatenate([channels, dark], axis=1) + 0.01)

    def encode_text(self, params, tokens, packing):
        slots = tokens.reshape(len(packing.ends), -1)
        name, template = (
            jnp.take_along_axis(slots, packing.ends - back, axis=1).reshape(-1) for back in (2, 1)
        )
        # Templates add a common direction, which the mean over templates keeps.
        named = jax.nn.one_hot(name, len(CLASSES))
        return self._unit(params["gain"] * named + 0.1 * template[:, None])

    def _unit(self, x):
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def tokenise(texts, context_length):
    """[class, template, end, 0, ...]: what the colour model reads."""
    rows = np.zeros((len(texts), context_length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[0] = next(i for i, name in enumerate(CLASSES) if name in text)
        row[1] = "photo" in text
        row[2] = 99
    return rows


class MemorySource:
    """A dataset in memory."""

    tokenizer = None
    fingerprint = "memory"

    def __init__(self, records, name="memory", classes=CLASSES):
        self.name, self.classes, self._records = name, classes, records

    def __len__(self):
        return len(self._records)

    def record(self, index):
        return self._records[index]


def png(colour, side=12):
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def coloured(shown, labels):
    return [
        schema.Record(key=f"t/{i}", image=png(COLOURS[name]), label=label)
        for i, (name, label) in enumerate(zip(shown, labels, strict=True))
    ]


def evaluator(source, devices=None, batch_size=8, domain="natural"):
    test_set = suites.TestSet("coloured", source, domain, TEMPLATES)
    mesh = sharding.make_mesh(devices=devices)
    suite = suites.Suite("toy", (test_set,))
    return zero_shot.Evaluator(ColourModel(), tokenise, [suite], mesh, batch_size=batch_size)


PARAMS = {"gain": jnp.float32(1)}


def test_known_answers_with_corrupt_and_unlabelled_records():
    # Twelve records that count, of which the last two are labelled wrongly.
    shown = ["red", "green", "blue"] * 4
    labels = [0, 1, 2] * 3 + [0, 2, 1]
    records = coloured(shown, labels)
    records.insert(3, schema.Record(key="corrupt", image=b"not an image", label=1))
    records.insert(7, schema.Record(key="unlabelled", image=png("red"), label=-1))
    source = MemorySource(records)

    measures = evaluator(source)(PARAMS)["toy"]["coloured"]
    assert measures == {
        "domain": "natural",
        "top1": pytest.approx(10 / 12),
        "n": 12,
        "classes": 3,  # nothing is labelled black
        "chance": pytest.approx(1 / 3),
        "invalid": 1,
        "unlabelled": 1,
    }
    answer = evaluator(source).predict(PARAMS)["toy"]["coloured"]
    counted = [i for i in range(14) if i not in (3, 7)]
    np.testing.assert_array_equal(answer.index, counted)
    np.testing.assert_array_equal(answer.prediction, [CLASSES.index(name) for name in shown])
    np.testing.assert_array_equal(answer.label, labels)


def test_probabilities_follow_the_definition():
    source = MemorySource(coloured(["red", "green"], [0, 1]))
    answer = evaluator(source).predict(PARAMS)["toy"]["coloured"]

    def unit(x):
        return x / np.linalg.norm(x)

    image = unit(np.array([1.0, 0, 0, 0]) + 0.01)
    heads = [unit(unit(np.eye(4)[c] + 0.1) + np.eye(4)[c]) for c in (0, 1)]
    logits = 100 * np.array([image @ head for head in heads])
    expected = np.exp(logits[0]) / np.exp(logits).sum()
    np.testing.assert_allclose(answer.probability, expected, rtol=1e-5)


def test_classes_that_do_not_occur_cannot_be_answered():
    # A black image is nearest to "black", which is answered only where it occurs.
    shown, labels = ["black", "red", "green"], [0, 0, 1]
    without = evaluator(MemorySource(coloured(shown, labels))).predict(PARAMS)["toy"]["coloured"]
    assert without.evaluated.tolist() == [True, True, False, False]
    assert without.prediction[0] in (0, 1)
    records = coloured([*shown, "black"], [*labels, 3])
    within = evaluator(MemorySource(records)).predict(PARAMS)["toy"]["coloured"]
    assert within.prediction.tolist() == [3, 0, 1, 3]


@pytest.mark.parametrize("batch_size", [1, 13, 64])
def test_one_and_eight_devices_and_any_batch_size_agree(batch_size):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (21, 3))
    records = [
        schema.Record(key=f"t/{i}", image=png(tuple(map(int, colour))), label=i % 4)
        for i, colour in enumerate(pixels)
    ]
    source = MemorySource(records)
    one = evaluator(source, jax.devices()[:1]).predict(PARAMS)["toy"]["coloured"]
    assert len(jax.devices()) == 8
    other = evaluator(source, batch_size=batch_size).predict(PARAMS)["toy"]["coloured"]
    assert one.measures() == other.measures()
    assert one.measures()["n"] == 21
    np.testing.assert_array_equal(one.index, other.index)
    np.testing.assert_array_equal(one.prediction, other.prediction)
    np.testing.assert_allclose(one.probability, other.probability, rtol=1e-5)


def test_four_models_answer_the_demo_suite_alike_on_one_and_eight_devices(tmp_path):
    demo.ensure(tmp_path, demo.DemoSpec(pool=0, test_natural=45, test_style=11), processes=0)
    opened = suites.load(["demo"], str(tmp_path))
    tower = {"width": 16, "layers": 1, "heads": 2}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    text = {**tower, "vocab_size": 600, "context_length": 16}
    config = {"name": "tiny-plain", "embed_dim": 8, "vision": vision, "text": text}
    model = model_lib.Model(model_config.from_config(config))
    few, all_of_them = (
        zero_shot.Evaluator(
            model,
            tokenizer.get_tokenizer(600),
            opened,
            sharding.make_mesh(devices=jax.devices()[:count]),
            batch_size=batch_size,
        )
        for count, batch_size in ((1, 32), (8, 20))
    )
    answered = set()
    # What is the same for all images is made small, or all have the same answer.
    shared = re.compile("class_embedding|positional|bias")
    for seed in range(4):
        rng = np.random.default_rng(seed)
        params = {
            name: (0.1 if shared.search(name) else 1) * rng.normal(size=leaf.shape)
            for name, leaf in model.shapes().items()
        }
        params = {name: value.astype(np.float32) for name, value in params.items()}
        one, other = few.predict(params)["demo"], all_of_them.predict(params)["demo"]
        assert {name: len(found.index) for name, found in one.items()} == {
            "natural": 45,
            **dict.fromkeys(("sketch", "cartoon", "painting", "clipart"), 11),
        }
        for name, found in one.items():
            np.testing.assert_array_equal(found.index, other[name].index)
            np.testing.assert_array_equal(found.prediction, other[name].prediction)
            np.testing.assert_allclose(found.probability, other[name].probability, rtol=1e-4)
        answered.add(tuple(one["natural"].prediction))
        assert len(np.unique(one["natural"].prediction)) > 2
    assert len(answered) == 4


def test_what_cannot_be_evaluated_is_told():
    corrupt = [schema.Record(key="c", image=b"", label=0)] * 3
    with pytest.raises(UserError, match="toy/coloured: none of its 3 records decodes"):
        evaluator(MemorySource(corrupt))(PARAMS)
    with pytest.raises(UserError, match="toy/coloured: label 9 has no class"):
        evaluator(MemorySource(coloured(["red"], [9])))(PARAMS)
    with pytest.raises(UserError, match="not finite"):
        evaluator(MemorySource(coloured(["red"], [0])))({"gain": jnp.float32(np.nan)})


def test_parameters_of_a_loss_are_ignored():
    source = MemorySource(coloured(["red", "blue"], [0, 2]))
    results = evaluator(source)({**PARAMS, "logit_bias": jnp.float32(3)})
    assert results["toy"]["coloured"]["top1"] == 1


def measures(domain, top1, n=100, **more):
    base = {"domain": domain, "top1": top1, "n": n, "classes": 4, "chance": 0.25}
    return base | {"invalid": 0, "unlabelled": 0} | more


def test_summary_averages_test_sets_within_a_domain():
    results = {
        "a": {
            "photo": measures("natural", 0.9, n=10),
            "web": measures("natural", 0.5, n=1000),
            "sketch": measures("rendition", 0.2),
        }
    }
    means = zero_shot.summary(results)
    assert means == {"a": {"natural": pytest.approx(0.7), "rendition": pytest.approx(0.2)}}
    flat = zero_shot.scalars(results)
    assert flat == {"zero_shot/a/photo": 0.9, "zero_shot/a/web": 0.5, "zero_shot/a/sketch": 0.2}
    assert json.loads(json.dumps(results)) == results


def test_table_is_aligned_and_names_what_was_left_out():
    text = tables.format_table(
        {
            "zoo": {
                "photo": measures("natural", 0.81),
                "sketch": measures("rendition", 1.0, 7, invalid=2),
            }
        }
    )
    assert text.splitlines() == [
        "test set    domain     images  top-1 %  95 % interval  chance %",
        "----------  ---------  ------  -------  -------------  --------",
        "zoo/photo   natural       100     81.0    72.2 - 87.5      25.0",
        "zoo/sketch  rendition       7    100.0   64.6 - 100.0      25.0",
        "zoo mean    natural               81.0",
        "zoo mean    rendition            100.0",
        "zoo/sketch: left out 2 invalid records",
    ]
