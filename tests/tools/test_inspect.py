"""The inspector finds records, and finds damage."""

import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clipdg_jax.data import dataset, engine, schema, writing
from clipdg_jax.errors import UserError
from tools import inspect, sheet

ROOT = pathlib.Path(inspect.__file__).parents[1]


def make(i):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (i * 5, 255 - i * 5, 0)).save(buffer, "PNG")
    image = b"broken" if i == 31 else buffer.getvalue()
    caption = f"a {'cat' if i % 4 else 'dog'} number {i}"
    label = 9 if i == 32 else i % 2
    tokens = None if i == 33 else np.array([510, i, 511], np.uint16)
    return schema.Record(f"s/{i:03d}", image, caption, tokens, label=label)


def build(path, count):
    return writing.write_dataset(
        path,
        engine.index_shards(count, 10),
        engine.Each(make),
        config={"tool": "a test"},
        classes=["cat", "dog"],
        tokenizer="hash",
        target_shard_bytes=2000,
    )


def test_a_sound_dataset_is_verified(tmp_path):
    data = build(tmp_path / "d", 30)
    assert inspect.verify(data) == []
    assert inspect.verify(data, processes=2) == []
    text = inspect.describe(data)
    for part in ("30 records", "30 seen = 30 written", "cat, dog", "hash", data.fingerprint):
        assert part in text


def test_every_kind_of_damage_is_told(tmp_path):
    data = build(tmp_path / "d", 40)
    name = data.manifest.shards[0].file
    content = bytearray((data.path / name).read_bytes())
    content[content.find(b"number 2")] ^= 1
    (data.path / name).write_bytes(content)
    problems = inspect.verify(dataset.open_dataset(data.path))
    assert len(problems) == 5
    expected = (f"{name}: its sha256", "s/031: its image", "s/032: label 9", "s/033: has no tokens")
    for part in expected:
        assert sum(part in problem for problem in problems) == 1
    assert "1 records cannot be read" in problems[-1]


def test_search_and_find(tmp_path):
    data = build(tmp_path / "d", 30)
    assert [i for i, _ in inspect.search(data, r"dog number 1\d")] == [12, 16]
    assert [i for i, _ in inspect.search(data, r"^s/00[12]$")] == [1, 2]
    with pytest.raises(UserError, match="regular expression"):
        next(inspect.search(data, "("))
    assert inspect.find(data, "7").key == "s/007"
    assert inspect.find(data, "s/007").caption == "a cat number 7"
    for wanted in ("30", "s/030", "s/00."):
        with pytest.raises(UserError, match="--record"):
            inspect.find(data, wanted)


def test_a_sheet_shows_the_images_in_order(tmp_path):
    data = build(tmp_path / "d", 40)
    assert sheet.write(data, 8, str(tmp_path / "sheet.png")) == 8
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    colours = [tuple(c) for c in np.unique(page.reshape(-1, 3), axis=0)]
    for place in range(8):
        i = place * 5
        assert (i * 5, 255 - i * 5, 0) in colours
    assert (5, 250, 0) not in colours  # record 1 was not asked for
    assert sheet.write(data, 100, str(tmp_path / "all.png")) == 40  # the broken one as text


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tools.inspect", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(tmp_path):
    build(tmp_path / "d", 40)
    shown = run("d", f"--data_root={tmp_path}", "--record=s/005", f"--out={tmp_path / 'i.png'}")
    assert json.loads(shown.stdout)["tokens"] == [510, 5, 511]
    assert Image.open(tmp_path / "i.png").getpixel((0, 0)) == (25, 230, 0)
    found = run(tmp_path / "d", "--search=dog", "--limit=2")
    assert found.stdout.splitlines()[0] == "0\ts/000\tcat\t-\ta dog number 0"
    assert "10 of 40 records match; 2 shown" in found.stdout
    bad = run(tmp_path / "d", "--verify")
    assert bad.returncode == 2
    assert "s/031" in bad.stdout
    assert len(bad.stderr.splitlines()) == 1
    for arguments, words in {
        (): "name a dataset",
        ("nowhere",): "no such dataset",
        ("a", "b"): "'b'",
        ("a", "--vreify"): "vreify",
    }.items():
        wrong = run(*arguments)
        assert wrong.returncode == 2
        assert len(wrong.stderr.splitlines()) == 1
        assert words in wrong.stderr
