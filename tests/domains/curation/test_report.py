"""The figures of the report, and a page that needs nothing but itself."""

import html.parser
import re

import numpy as np
import pytest

from clipdg_jax.data import images
from clipdg_jax.domains.curation import charts, report, selection
from clipdg_jax.evaluation import page, stats


def selected(counts):
    shape = (2, 4, selection.BINS)
    return selection.Selection(0, {}, {}, np.array(counts), np.zeros(shape, np.int64), {})


def test_ground_truth_is_of_what_was_written_against_the_deduplicated_pool():
    counts = [
        [0, 0, 0, 0, 0],
        [80, 1, 15, 4, 50],  # truly natural: taken as natural, ..., conflict, duplicate
        [2, 60, 30, 8, 7],
        [3, 4, 90, 1, 2],
    ]
    truth = report.ground_truth(selected(counts), ("natural", "rendition", "ambiguous"))
    assert truth == {
        "natural": {"precision": 80 / 85, "recall": 80 / 100},
        "rendition": {"precision": 60 / 65, "recall": 60 / 100},
    }
    assert list(report.ground_truth(selected(counts), ("rendition",))) == ["rendition"]
    unknown = [[0, 0, 1, 0, 0], *counts[1:]]
    assert report.ground_truth(selected(unknown), ("natural",)) is None
    nothing = [[0] * 5, [0, 0, 3, 0, 0], [0] * 5, [0] * 5]
    assert report.ground_truth(selected(nothing), ("natural", "rendition")) == {
        "natural": {"precision": None, "recall": 0.0},
        "rendition": {"precision": None, "recall": None},
    }


def test_composition_has_wilsons_intervals():
    told = report.composition({"natural": 56, "rendition": 24, "ambiguous": 20, "conflict": 0})
    assert told["n"] == 100
    for name, count in (("natural", 56), ("rendition", 24), ("conflict", 0)):
        low, high = stats.wilson_interval(count, 100)
        assert told["shares"][name] == {
            "count": count,
            "share": count / 100,
            "low": low,
            "high": high,
        }
    assert report.composition({"natural": 0}) == {}


def test_pool_counts_add_up():
    own = selection.Selection(
        30, {"corrupt_image": 2}, {}, np.ones((4, 5), np.int64), np.zeros((2, 4, 50)), {}
    )
    told = report.pool_counts("pool", own)
    assert told["duplicates"] == 4
    assert told["decided"] == dict.fromkeys(("natural", "rendition", "ambiguous", "conflict"), 4)


def bars(svg):
    return [
        {k: float(v) for k, v in zip(("x", "y", "width", "height"), found[:4])} | {"fill": found[4]}
        for found in re.findall(
            r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" fill="(.+?)"', svg
        )
    ]


def test_a_histograms_bars_are_logarithms_divided_by_decision():
    counts = np.zeros((4, 10), np.int64)
    counts[0, 9], counts[2, 9], counts[1, 0] = 60, 39, 9
    svg = charts.histogram(counts, 0.75, "natural decider", "about")
    found = bars(svg)
    by_colour = {one["fill"]: one for one in found}
    assert len(found) == 3
    natural, rendition, ambiguous = (
        by_colour[charts.COLOURS[name]] for name in ("natural", "rendition", "ambiguous")
    )
    whole = natural["height"] + ambiguous["height"]
    assert natural["height"] / whole == pytest.approx(60 / 99, abs=0.01)
    # 99 and 9 images: log10(1 + 99) is twice log10(1 + 9).
    assert whole / rendition["height"] == pytest.approx(2, abs=0.01)
    assert natural["y"] + natural["height"] == pytest.approx(rendition["y"] + rendition["height"])
    assert ambiguous["y"] + ambiguous["height"] == pytest.approx(natural["y"], abs=0.02)
    assert "threshold 0.7500" in svg
    assert "threshold" not in charts.histogram(counts, np.inf, "natural decider", "about")


class Links(html.parser.HTMLParser):
    """Tags that are opened and not closed, and whatever is loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "path", "rect", "br"):
            self.open.append(tag)
        self.loaded += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    """That the page is well formed and loads nothing; returns the images in it."""
    parser = Links()
    parser.feed(text)
    assert parser.open == []
    kinds = ("data:image/jpeg;base64,", "data:image/svg+xml;base64,")
    assert all(link.startswith(kinds) for link in parser.loaded)
    assert "http" not in text
    assert "<script" not in text
    return parser.loaded


def test_text_is_escaped_and_pictures_are_shrunk():
    picture = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    parts = [
        page.heading("a <b>"),
        page.paragraph("x & y"),
        page.tiles({"<what>": "1"}),
        page.table(["a", "<i>"], [["1", "<u>"]], sums=1),
        charts.bar("<s>", [charts.Share("natural", 0.5, "<50 %>")]),
        charts.gallery([(picture, "<0.9>", "natural"), (picture[:10, :12], "small", "")]),
    ]
    text = page.document("<title>", parts)
    loaded = check_page(text)
    assert "&lt;what&gt;" in text
    shapes = []
    for link in loaded:
        data = page.base64.b64decode(link.partition(",")[2])
        shapes.append(images.decode(data).shape)
    assert shapes == [(128, 85, 3), (10, 12, 3)]
