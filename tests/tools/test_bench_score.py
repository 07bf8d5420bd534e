"""The benchmark of scoring scores every image of its tars, and tells of them what curate would."""

import tarfile

import pytest

from tests.domains import small_datasets
from tools import bench_filter, bench_pictures, bench_score


def test_all_images_of_the_tars_are_scored(tmp_path):
    pictures = bench_pictures.draw(4, 32)
    bench_pictures.write_tars(tmp_path / "pool", pictures, tars=3, records=10)
    small_datasets.saved(tmp_path / "classifier")
    told = bench_score.score(tmp_path / "pool", tmp_path / "classifier", tmp_path / "work", 4)
    assert told["images"] == 10
    assert told["waited_s"] > 0  # Of captions alone there is no time of scoring to speak of.


def test_rate_and_waiting_are_of_the_time_of_both():
    counts = {"images": 300, "waited_s": 0.5, "scored_s": 1.5}
    line = bench_score.report(10, bench_filter.Turn(9.0, 8.0, 321.0, counts))
    assert "150 images/s" in line
    assert "25.0 % waiting" in line
    assert line.endswith("321 MB peak")


@pytest.mark.parametrize("style", ["jpg", "txt"])
def test_tars_hold_each_picture_with_its_caption(tmp_path, style):
    pictures = bench_pictures.draw(2, 32)
    bench_pictures.write_tars(tmp_path / "pool", pictures, tars=1, records=3)
    with tarfile.open(tmp_path / "pool" / "00000.tar") as tar:
        found = [tar.extractfile(f"{i:08d}.{style}").read() for i in range(3)]
    kinds = {"jpg": [image for image, _ in pictures], "txt": [c.encode() for _, c in pictures]}
    assert found == [*kinds[style], kinds[style][0]]
