"""Tars become a dataset, and what became of every sample is told."""

import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from clipdg_jax.data import dataset, images, tokenizer
from clipdg_jax.errors import UserError
from tools import import_webdataset

ROOT = pathlib.Path(import_webdataset.__file__).parents[1]


def picture(seed, kind="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path, samples):
    """Samples as (key, image bytes or None, suffix, caption or None)."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, image, suffix, caption in samples:
            if image is not None:
                add(tar, f"{key}.{suffix}", image)
            if caption is not None:
                add(tar, f"{key}.txt", caption.encode())
            add(tar, f"{key}.json", json.dumps({"url": f"http://example.org/{key}"}).encode())


def plain(tar, count):
    kinds = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"))
    made = []
    for i in range(count):
        kind, suffix = kinds[i % 3]
        made.append((f"{tar:05d}{i:04d}", picture(100 * tar + i, kind), suffix, f"a thing {i}"))
    return made


@pytest.fixture
def web(tmp_path):
    """Three tars: whole; with two corrupt images, a repeat, two captions missing; truncated."""
    tars = tmp_path / "web"
    write_tar(tars / "00000.tar", plain(0, 9))
    samples = plain(1, 10)
    samples[2] = (samples[2][0], b"not an image", "jpg", "x")
    samples[3] = (samples[3][0], samples[3][1][: len(samples[3][1]) // 2], "jpg", "x")
    samples[5] = (samples[5][0], samples[5][1], "webp", None)
    samples[6] = (samples[6][0], samples[6][1], "jpg", " \n")
    samples.insert(8, samples[1])
    samples.append(("no_image", None, "", "words only"))
    write_tar(tars / "00001.tar", samples)
    write_tar(tars / "00002.tar", plain(2, 5))
    with tarfile.open(tars / "00002.tar") as tar:
        fourth = tar.getmember("000020003.jpg")
    os.truncate(tars / "00002.tar", fourth.offset_data + fourth.size // 2)
    return tars


def test_the_counts_add_up(web, tmp_path):
    data = import_webdataset.import_tars(str(web), tmp_path / "out", domain="natural")
    manifest = data.manifest
    assert manifest.dropped == {
        "corrupt_image": 2,
        "duplicate_key": 1,
        "no_caption": 2,
        "no_image": 1,
        "truncated": 1,
    }
    assert manifest.faults == {"truncated_tar": 1}
    assert manifest.seen == 9 + 12 + 4
    assert len(data) == 9 + (12 - 6) + 3 == manifest.seen - 7
    keys = [data.record(i).key for i in range(len(data))]
    assert len(set(keys)) == len(keys)
    assert keys[:9] == [f"00000/00000{i:04d}" for i in range(9)]
    assert keys[-3:] == [f"00002/00002{i:04d}" for i in range(3)]


def test_records_hold_what_the_tar_held(web, tmp_path):
    data = import_webdataset.import_tars(
        str(web), tmp_path / "out", domain="rendition", vocab_size=1024
    )
    tokens = tokenizer.get_tokenizer(1024)
    assert data.tokenizer == tokens.hash != tokenizer.get_tokenizer().hash
    assert data.domain == "rendition"
    for i, (key, image, _, caption) in enumerate(plain(0, 9)):
        record = data.record(i)
        assert record.key == f"00000/{key}"
        assert record.image == image
        assert record.caption == caption
        assert record.domain == "rendition"
        assert record.meta == {"url": f"http://example.org/{key}"}
        np.testing.assert_array_equal(record.tokens, tokens.encode([caption])[0])
        assert images.decode(record.image).shape == (24, 32, 3)


def test_uncaptioned_images_are_kept_when_asked(web, tmp_path):
    data = import_webdataset.import_tars(str(web), tmp_path / "out", keep_uncaptioned=True)
    assert "no_caption" not in data.manifest.dropped
    empty = [r for r in map(data.record, range(len(data))) if not r.caption]
    assert [r.key[-4:] for r in empty] == ["0005", "0006"]
    assert all(len(r.tokens) == 2 for r in empty)  # start and end


def test_another_setting_is_refused_by_name(web, tmp_path):
    import_webdataset.import_tars(str(web), tmp_path / "out")
    with pytest.raises(UserError, match='domain="", now domain="natural"'):
        import_webdataset.import_tars(str(web), tmp_path / "out", domain="natural")
    (web / "00002.tar").unlink()
    with pytest.raises(UserError, match="tars="):
        import_webdataset.import_tars(str(web), tmp_path / "out")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tools.import_webdataset", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_works_with_processes_and_reports(web, tmp_path):
    out = tmp_path / "out"
    result = run(f"--tars={web}", f"--out={out}", "--processes=2")
    assert result.returncode == 0, result.stderr
    assert "18 records" in result.stdout
    assert "25 seen = 18 written + 2 corrupt_image + 1 duplicate_key" in result.stdout
    assert "1 truncated_tar" in result.stdout
    inline = import_webdataset.import_tars(str(web), tmp_path / "inline" / "out")
    assert dataset.open_dataset(out).fingerprint == inline.fingerprint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tars=nowhere", "--out=x"], "nowhere: no tars there"),
        (["--out=x"], "--tars: is missing"),
        (["--tras=x"], "tras"),
        (["--domain=drawing"], "domain"),
        (["--tars=x", "extra"], "extra"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(arguments, words):
    result = run(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
