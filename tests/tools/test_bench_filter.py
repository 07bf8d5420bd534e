"""The benchmark compares like with like: both ways keep the same images in the same datasets."""

import tarfile

import pytest

from clipdg_jax.data import dataset, tokenizer
from tools import bench_filter


@pytest.mark.parametrize("pax", [True, False])
def test_both_ways_keep_the_same_samples(tmp_path, pax):
    decisions = bench_filter.make_pool(tmp_path / "pool", shards=2, records=40, pax=pax)
    ours = bench_filter.filter_ours(tmp_path / "pool", tmp_path / "ours", decisions, 1, 1 << 30)
    plain = bench_filter.filter_plain(tmp_path / "pool", tmp_path / "plain", decisions)
    assert ours == plain
    for name in bench_filter.DATASETS:
        images = {}
        for path in sorted((tmp_path / "plain" / name).glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    stem, suffix = member.name.split(".")
                    if suffix == "jpg":
                        images[f"{path.stem}/{stem}"] = tar.extractfile(member).read()
        data = dataset.open_dataset(tmp_path / "ours" / name)
        records = [data.record(index) for index in range(len(data))]
        assert {record.key: record.image for record in records} == images
        assert all(decisions[key] == name for key in images)
        encoder = tokenizer.get_tokenizer()
        tokens = encoder.encode([record.caption for record in records])
        assert [r.tokens.tolist() for r in records] == [t.tolist() for t in tokens]
    assert sum(ours.values()) == len(decisions)
    assert 0.5 < ours["natural"] / 80 < 0.65
    assert 0.15 < ours["rendition"] / 80 < 0.35


def test_figures_are_medians_and_ratios_are_taken_turn_by_turn():
    turns = {
        "ours": [bench_filter.Turn(s, 2.0, 100.0, {}) for s in (1.0, 2.0, 4.0)],
        "tarfile": [bench_filter.Turn(s, 5.0, 50.0, {}) for s in (4.0, 6.0, 8.0)],
    }
    first, second = bench_filter.report(turns, 600)
    assert " 300 records/s" in first
    assert "x3.00 (2.00 to 4.00)" in first
    assert " 100 records/s" in second
    assert "x1.00 (1.00 to 1.00)" in second
