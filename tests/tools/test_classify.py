"""Sorting datasets and folders with a saved classifier."""

import io

import pyarrow.parquet as pq
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from clipdg_jax.errors import UserError
from tests.domains import small_datasets
from tools import classify


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "keywords"
    small_datasets.saved(path)
    return path


def sort(**given):
    """What the command line with these flags does."""
    with flagsaver.flagsaver(**{k: v if isinstance(v, list) else str(v) for k, v in given.items()}):
        assert all(name in flags.FLAGS for name in given)
        classify.main(["classify"])


def test_a_dataset_with_domains_is_sorted_and_measured(saved, tmp_path, capsys):
    small_datasets.write(tmp_path / "d", 30, damaged=(4, 5))
    out = tmp_path / "new" / "out.parquet"
    sort(classifier=saved, dataset=["d"], data_root=tmp_path, out=out)
    rows = pq.read_table(out).to_pylist()
    assert [row["key"] for row in rows] == [f"r/{i:03d}" for i in range(30) if i not in (4, 5)]
    for row in rows:
        assert row["decision"] == row["domain"]
        assert 0 <= row["natural"] + row["rendition"] <= 1 + 1e-6
    printed = capsys.readouterr().out
    assert "28 images: 10 natural, 9 rendition, 9 ambiguous, 0 conflict" in printed
    assert "2 could not be read" in printed
    assert "precision" in printed
    assert "recall" in printed
    told = [line.split() for line in printed.splitlines() if " keywords " in line]
    assert [line[0] for line in told] == ["natural", "rendition"]
    assert [line[3] for line in told] == ["10", "9"]  # Taken, and all of them rightly.
    assert all("100.0" in line or "100" in line for line in told)


def test_several_datasets_in_small_batches(saved, tmp_path, capsys):
    small_datasets.write(tmp_path / "d", 7)
    small_datasets.write(tmp_path / "e", 4, domains=False)
    with flagsaver.flagsaver(batch=3):
        sort(classifier=saved, dataset=["d", "e"], data_root=tmp_path, out=tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["decision"] for row in rows] == [
        ("natural", "rendition", "ambiguous")[i % 3] for i in (*range(7), *range(4))
    ]
    assert [row["domain"] for row in rows][7:] == [""] * 4
    assert "precision" not in capsys.readouterr().out  # Some truth is unknown.


def _folder(path):
    (path / "deep").mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 10, 0)).save(buffer, "PNG")
    for name in ("a.png", "deep/b.PNG"):
        (path / name).write_bytes(buffer.getvalue())
    (path / "deep" / "corrupt.jpg").write_bytes(b"no image")
    (path / "notes.txt").write_text("not looked at")
    return path


def test_a_folder_counts_what_cannot_be_read(saved, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    with flagsaver.flagsaver(batch=1):  # So that one batch holds nothing readable.
        sort(classifier=saved, folder=_folder(tmp_path / "f"), domain="natural", out=out)
    rows = pq.read_table(out).to_pylist()
    assert [row["key"] for row in rows] == ["a.png", "deep/b.PNG"]
    assert {row["domain"] for row in rows} == {"natural"}
    printed = capsys.readouterr().out
    assert "2 images" in printed
    assert "1 could not be read" in printed
    assert "recall" in printed


def test_a_folder_of_nothing_readable_is_no_error(saved, tmp_path, capsys):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x.jpg").write_bytes(b"")
    sort(classifier=saved, folder=tmp_path / "f", out=tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert "0 images" in capsys.readouterr().out


def test_wrong_flags_are_one_line(saved, tmp_path):
    folder, out = _folder(tmp_path / "f"), tmp_path / "out.parquet"
    for given in (
        {"folder": folder, "out": out},
        {"classifier": saved, "folder": folder},
        {"classifier": saved, "out": out},
        {"classifier": saved, "out": out, "folder": folder, "dataset": ["d"]},
    ):
        with pytest.raises(UserError, match="flags: give --classifier"):
            sort(**given)
    with pytest.raises(UserError, match="is not a saved classifier"):
        sort(classifier=tmp_path, folder=folder, out=out)
    with pytest.raises(UserError, match="is not a folder"):
        sort(classifier=saved, folder=tmp_path / "none", out=out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.jpg"):
        sort(classifier=saved, folder=tmp_path / "empty", out=out)
    with pytest.raises(UserError, match="a file is in the way"):
        sort(classifier=saved, folder=folder, out=folder / "a.png" / "out.parquet")
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(UserError, match="exists; choose another --out"):
        sort(classifier=saved, folder=folder, out=out)
    assert out.read_text() == "mine"


def test_a_full_disk_leaves_nothing_behind(saved, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(classify.pq, "write_table", full)
    with pytest.raises(UserError, match=r"out\.parquet: no space left to write it"):
        sort(classifier=saved, folder=_folder(tmp_path / "f"), out=tmp_path / "out.parquet")
    assert not list(tmp_path.glob("*.parquet*"))
    assert not list(tmp_path.glob(".*"))
