"""The demo world: determinism, independence of its factors, cues, captions, styles, disk."""

import collections
import dataclasses
import hashlib
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from clipdg_jax import errors
from clipdg_jax.data import dataset, demo, images, schema
from clipdg_jax.data.demo import captions, scene, vocabulary
from clipdg_jax.evaluation import suites

WORLD = demo.World()

_DIGEST = """
import hashlib
from clipdg_jax.data import demo
h = hashlib.sha256()
for style in demo.STYLES:
    for index in (11, 3, 7):
        example = demo.render(demo.World(), style, 5, index)
        h.update(example.image.tobytes() + example.caption.encode())
print(h.hexdigest())
"""


def _factors(style: str, count: int, world: demo.World = WORLD, seed: int = 0):
    return [scene.sample(world, style, seed, index) for index in range(count)]


def _chi_square(table: np.ndarray) -> float:
    """Pearson's statistic against independent rows and columns, in standard deviations."""
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float((((table - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def _table(rows: list, columns: list) -> np.ndarray:
    pairs = collections.Counter(zip(rows, columns, strict=True))
    return np.array([[pairs[r, c] for c in sorted(set(columns))] for r in sorted(set(rows))])


def test_the_same_picture_in_any_order_and_any_process():
    expected = hashlib.sha256()
    backwards = {
        (style, index): demo.render(WORLD, style, 5, index)
        for style in reversed(demo.STYLES)
        for index in (3, 7, 11)
    }
    for style in demo.STYLES:
        for index in (11, 3, 7):
            example = backwards[style, index]
            expected.update(example.image.tobytes() + example.caption.encode())
    found = subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, text=True)
    assert found.stdout.strip() == expected.hexdigest(), found.stderr


def test_seeds_and_indices_give_different_pictures():
    for style in demo.STYLES:
        seen = {demo.render(WORLD, style, s, i).image.tobytes() for s in (0, 1) for i in range(3)}
        assert len(seen) == 6


@pytest.mark.parametrize("style", demo.STYLES)
def test_class_colour_and_style_are_independent(style):
    scenes = _factors(style, 6000)
    labels = [s.label for s in scenes]
    assert sorted(set(labels)) == list(range(len(demo.CLASSES)))
    assert _chi_square(_table(labels, [s.colour for s in scenes])) < 4
    # Every style draws its classes uniformly, so class and style are independent too.
    counts = np.bincount(labels)
    assert abs(counts - 500).max() < 5 * np.sqrt(500)
    if vocabulary.domain_of(style) == "rendition":
        assert _chi_square(_table(labels, [s.context for s in scenes])) < 4


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_cue_correlation_is_the_stated_one(correlation):
    count = 6000
    scenes = _factors("natural", count, demo.World(40, correlation))
    error = 4 * np.sqrt(0.25 / count)
    for cue, options in (("material", demo.MATERIALS), ("context", demo.CONTEXTS)):
        own = [
            s.material == demo.MATERIALS[s.label]
            if cue == "material"
            else s.context == vocabulary.OWN_CONTEXT[s.name]
            for s in scenes
        ]
        assert np.mean(own) == pytest.approx(
            correlation + (1 - correlation) / len(options), abs=error
        )
    both = np.mean([s.own_material and s.own_context for s in scenes])
    assert both == pytest.approx(correlation**2, abs=error)
    if correlation == 0:
        assert _chi_square(_table([s.label for s in scenes], [s.material for s in scenes])) < 4


def test_worlds_of_other_correlations_differ_in_cues_only():
    loose, tight = demo.World(40, 0.0), demo.World(40, 1.0)
    for index in range(50):
        a, b = (scene.sample(w, "natural", 3, index) for w in (loose, tight))
        assert (a.label, a.colour) == (b.label, b.colour)
        assert b.own_context
        assert b.own_material
        assert not a.own_context
    a, b = (demo.render(w, "cartoon", 3, 1).image for w in (loose, tight))
    np.testing.assert_array_equal(a, b)


def test_captions_are_as_the_web_has_them():
    kinds = collections.Counter()
    words, named, styled, lengths = set(), 0, 0, []
    for style in demo.STYLES:
        for s in _factors(style, 1500):
            text, kind = captions.caption(s)
            kinds[kind] += 1
            words.update(w for w in text.lower().split() if not any(c.isdigit() for c in w))
            lengths.append(len(text.split()))
            names = (s.name, *vocabulary.SYNONYMS[s.name])
            if kind in ("plain", "long"):
                assert any(name in text.lower() for name in names), text
                named += s.name in text.lower()
            if kind == "empty":
                assert not any(name in text.lower().split() for name in vocabulary.CLASSES)
            if s.domain == "rendition":
                assert "photo" not in text or kind == "empty", text
            if style == "natural":
                styled += any(w in text for w in ("sketch", "drawing", "painting", "cartoon"))
    total = sum(kinds.values())
    for kind, share in (
        ("wrong", captions.WRONG),
        ("empty", captions.EMPTY),
        ("long", captions.LONG),
    ):
        assert kinds[kind] / total == pytest.approx(share, abs=4 * np.sqrt(share / total))
    assert styled == 0
    assert 0.7 < named / (kinds["plain"] + kinds["long"]) < 0.9
    assert 200 < len(words) < 700
    assert max(lengths) > 20
    assert min(lengths) == 1
    assert 4 < np.mean(lengths) < 10


def test_wrong_captions_name_another_class_and_no_truth():
    wrong = 0
    for s in _factors("natural", 2000):
        text, kind = captions.caption(s)
        if kind == "wrong":
            wrong += 1
            own = (s.name, *vocabulary.SYNONYMS[s.name])
            assert not set(own) & set(text.lower().replace(",", "").split()), (s.name, text)
    assert wrong > 40


def _means(style: str, measure, count: int = 60) -> float:
    return float(
        np.mean(
            [measure(demo.render(WORLD, style, 1, i).image.astype(float)) for i in range(count)]
        )
    )


def test_styles_look_as_they_should():
    def chroma(image):
        return (image.max(-1) - image.min(-1)).mean()

    def fine(image):  # energy between neighbouring pixels that are not at an edge
        grey = image.mean(-1)
        return np.median(np.abs(np.diff(grey, axis=1)))

    def white(image):
        return (image.min(-1) > 250).mean()

    chromas = {style: _means(style, chroma) for style in demo.STYLES}
    assert chromas["sketch"] < 16 < 25 < min(chromas[s] for s in demo.STYLES if s != "sketch")
    # Flat areas are flat; photographs have grain everywhere; paint and tiles have marks.
    texture = {style: _means(style, fine) for style in demo.STYLES}
    assert max(texture["cartoon"], texture["clipart"]) < 4
    assert min(texture["natural"], texture["painting"], texture["mosaic"]) > 5
    assert _means("clipart", white) > 0.15
    assert _means("natural", white) < 0.05
    assert _means("sketch", lambda image: image.mean()) > 170


@pytest.mark.parametrize("style", [s for s in demo.STYLES if s != "ambiguous"])
def test_every_class_stands_out_of_its_ground_in_every_style(style):
    """The object's area, seen by its pose, differs from the rest of the picture in colour."""
    world = demo.World(size=48)
    apart = collections.defaultdict(list)
    index = 0
    while min((len(apart[c]) for c in demo.CLASSES), default=0) < 3:
        image = demo.render(world, style, 2, index).image.astype(float)
        name = scene.sample(world, style, 2, index).name
        index += 1
        border = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)])
        distance = np.sqrt(((image - np.median(border, 0)) ** 2).sum(-1))
        apart[name].append((distance[8:-8, 8:-8] > 40).mean())
    for name in demo.CLASSES:
        assert np.mean(apart[name]) > 0.05, name


def test_size_changes_resolution_not_content():
    for style in ("cartoon", "clipart"):
        small = demo.render(demo.World(40), style, 4, 9).image.astype(float)
        large = demo.render(demo.World(160), style, 4, 9).image
        assert large.shape == (160, 160, 3)
        shrunk = cv2.resize(large, (40, 40), interpolation=cv2.INTER_AREA).astype(float)
        assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.9


SPEC = demo.DemoSpec(natural=30, rendition=16, ambiguous=4, pool=40, test_natural=6, test_style=4)


def test_ensure_writes_datasets_and_suites_once(tmp_path):
    demo.ensure(tmp_path, SPEC, processes=0)
    natural = dataset.open_dataset(tmp_path / "natural")
    rendition = dataset.open_dataset(tmp_path / "rendition")
    pool = dataset.open_dataset(tmp_path / "pool")
    assert (len(natural), len(rendition), len(pool)) == (30, 16, 40)
    assert natural.classes == demo.CLASSES
    assert natural.domain == "natural"
    assert pool.domain == ""
    styles = collections.Counter(rendition.record(i).meta["style"] for i in range(16))
    assert styles == dict.fromkeys(demo.RENDITION_STYLES, 4)
    assert {pool.record(i).domain for i in range(40)} == {"natural", "rendition", "ambiguous"}

    record = natural.record(17)
    example = demo.render(demo.World(), "natural", 0, 17)
    assert record.key == "00000/00017.jpg"
    assert record.caption == example.caption
    assert demo.CLASSES[record.label] == record.meta["class"] == example.scene.name
    decoded = images.decode(record.image).astype(float)
    assert np.abs(decoded - example.image).mean() < 8
    assert record.tokens[0] == 2046
    assert record.tokens[-1] == 2047

    demo_suite, held_out = suites.load(["demo", "demo_heldout"], str(tmp_path))
    assert [t.name for t in demo_suite.test_sets] == ["natural", *demo.RENDITION_STYLES]
    assert [t.name for t in held_out.test_sets] == [demo.HELD_OUT_STYLE]
    trained = {natural.record(i).image for i in range(30)}
    test = demo_suite.test_sets[0].source
    assert not trained & {test.record(i).image for i in range(len(test))}

    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    demo.ensure(tmp_path, SPEC, processes=0)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_ensure_restores_what_is_missing_and_the_result_has_the_same_bytes(tmp_path):
    def content(root):
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.array_record*")}

    spec = demo.DemoSpec(natural=5, rendition=4, pool=0, test_natural=2, test_style=1)
    demo.ensure(tmp_path / "a", spec, processes=0)
    first = content(tmp_path / "a")
    demo.ensure(tmp_path / "b", spec, processes=0)
    (tmp_path / "b/demo.json").unlink()
    for path in (tmp_path / "b/natural").iterdir():
        path.unlink()
    demo.ensure(tmp_path / "b", spec, processes=0)
    assert content(tmp_path / "b") == first


def test_ensure_refuses_another_world_and_bad_fields(tmp_path):
    spec = demo.DemoSpec(natural=2, rendition=4, pool=0, test_natural=1, test_style=1)
    demo.ensure(tmp_path, spec, processes=0)
    with pytest.raises(errors.UserError, match=r"cue_correlation=0\.9.*cue_correlation=0\.3"):
        demo.ensure(
            tmp_path,
            dataclasses.replace(spec, cue_correlation=0.3),
        )
    for field, value in (("natural", -1), ("size", 4), ("cue_correlation", 1.5), ("test_style", 0)):
        with pytest.raises(errors.UserError, match=f"demo.{field}"):
            demo.ensure(tmp_path / "other", demo.DemoSpec(**{field: value}))
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(errors.UserError, match=r"demo\.json"):
        demo.ensure(tmp_path, spec)
    assert json.loads((tmp_path / "demo/suite.json").read_text())["name"] == "demo"


def _pool(copies_share, root, count=240):
    spec = demo.DemoSpec(
        natural=0, rendition=0, pool=count, test_natural=1, test_style=1, pool_copies=copies_share
    )
    demo.ensure(root, spec, processes=0)
    pool = dataset.open_dataset(root / "pool")
    return [pool.record(i) for i in range(count)]


def test_copies_are_of_earlier_originals_and_change_as_their_kind_says(tmp_path):
    records = _pool(0.5, tmp_path)
    by_key = {record.key: record for record in records}
    assert len(by_key) == len(records)
    kinds = collections.Counter(record.meta.get("copy") for record in records)
    assert set(kinds) == {None, *demo.COPIES}
    assert kinds[None] == pytest.approx(120, abs=35)
    same_caption = 0
    for record in records:
        if "copy" not in record.meta:
            assert "copy_of" not in record.meta
            continue
        original = by_key[record.meta["copy_of"]]
        assert "copy" not in original.meta
        assert original.key < record.key
        assert (record.label, record.domain) == (original.label, original.domain)
        same_caption += record.caption == original.caption
        assert (record.image == original.image) == (record.meta["copy"] == "exact")
        ours, theirs = (images.decode(r.image).astype(float) for r in (record, original))
        if record.meta["copy"] == "cropped":
            assert ours.shape == (38, 38, 3)
            windows = [theirs[y : y + 38, x : x + 38] for y in range(3) for x in range(3)]
            assert min(np.abs(ours - window).mean() for window in windows) < 8
            continue
        if ours.shape != theirs.shape:
            assert record.meta["copy"] == "resized"
            assert 24 <= ours.shape[0] <= 36
            ours = cv2.resize(ours, (40, 40), interpolation=cv2.INTER_CUBIC)
        if record.meta["copy"] == "mirrored":
            ours = ours[:, ::-1]
        apart = np.abs(ours - theirs).mean()
        assert apart < (45 if record.meta["copy"] == "recoloured" else 25), record.meta
    assert same_caption == pytest.approx((len(records) - kinds[None]) / 2, abs=30)


def test_a_pool_without_copies_has_the_bytes_that_it_had_before_there_were_any(tmp_path):
    plain, copied = _pool(0.0, tmp_path / "plain", 40), _pool(0.5, tmp_path / "copied", 40)
    manifest = json.loads((tmp_path / "plain/pool/manifest.json").read_text())
    assert "copies" not in manifest["config"]
    for before, after in zip(plain, copied, strict=True):
        if "copy" not in after.meta:
            assert schema.encode(before) == schema.encode(after)
    # A world that was made before its spec had copies is still the same world.
    path = tmp_path / "plain/demo.json"
    told = json.loads(path.read_text())
    del told["pool_copies"]
    path.write_text(json.dumps(told))
    _pool(0.0, tmp_path / "plain", 40)
    with pytest.raises(errors.UserError, match=r"pool_copies=0\.5.*pool_copies=0\.0"):
        _pool(0.0, tmp_path / "copied", 40)
    with pytest.raises(errors.UserError, match=r"demo\.pool_copies: 0\.95"):
        _pool(0.95, tmp_path / "other", 40)


def test_the_first_records_of_a_longer_pool_are_those_of_a_shorter_one(tmp_path):
    short, long = _pool(0.4, tmp_path / "short", 30), _pool(0.4, tmp_path / "long", 60)
    assert [schema.encode(r) for r in short] == [schema.encode(r) for r in long[:30]]
