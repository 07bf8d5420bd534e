"""Tars as img2dataset writes them, whole and damaged."""

import io
import json
import tarfile

import pytest

from clipdg_jax.data import engine, tars
from clipdg_jax.errors import UserError


def write(path, members, tail=True):
    """A tar of (name, bytes); without its tail as a killed writer leaves it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    path.write_bytes(buffer.getvalue() if tail else buffer.getvalue()[:end])
    return path


def sample(key, suffix="jpg", caption=None, meta=None):
    members = [(f"{key}.{suffix}", f"image of {key}".encode())]
    if caption is not None:
        members.append((f"{key}.txt", caption.encode()))
    if meta is not None:
        members.append((f"{key}.json", json.dumps(meta).encode()))
    return members


def read(path):
    return list(tars.TarShard("t", path))


def test_samples_come_in_order_with_all_their_members(tmp_path):
    members = [
        *sample("000", caption=" two dogs \n", meta={"url": "u", "similarity": 0.3}),
        *sample("001", "PNG", meta={"caption": "from the JSON"}),
        *sample("a.b/002", "webp", caption="", meta={"caption": "not this one"}),
        ("003.txt", b"no image"),
        ("._004.jpg", b"macOS"),
        ("005.jpeg", b"x"),
        ("005.cls", b"7"),
        ("005.txt", b"caf\xe9"),
    ]
    found = read(write(tmp_path / "t.tar", members))
    assert found == [
        tars.TarSample("t/000", b"image of 000", "two dogs", {"url": "u", "similarity": 0.3}),
        tars.TarSample("t/001", b"image of 001", "from the JSON", {"caption": "from the JSON"}),
        tars.TarSample("t/a.b/002", b"image of a.b/002", "", {"caption": "not this one"}),
        tars.TarSample("t/003", None, "no image", {}),
        tars.TarSample("t/005", b"x", "caf\ufffd", {}),
    ]


def test_a_repeated_key_is_a_sample_of_its_own(tmp_path):
    members = [*sample("0", caption="a"), *sample("0", caption="b"), *sample("1", caption="c")]
    members += sample("0", caption="d")
    found = read(write(tmp_path / "t.tar", members))
    assert [(s.key, s.caption) for s in found] == [
        ("t/0", "a"),
        ("t/0", "b"),
        ("t/1", "c"),
        ("t/0", "d"),
    ]


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff"])
def test_bad_json_is_a_fault_and_keeps_the_sample(tmp_path, text):
    path = write(tmp_path / "t.tar", [*sample("0", caption="a"), ("0.json", text)])
    assert read(path) == [engine.Fault("bad_json"), tars.TarSample("t/0", b"image of 0", "a", {})]


def test_wherever_a_tar_is_cut_the_counts_tell(tmp_path):
    big = [(name, data * 60) for name, data in sample("1", caption="c" * 20)]
    members = [*sample("0", caption="a"), *big, *sample("2", caption="b")]
    path = write(tmp_path / "whole.tar", members)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = {info.name: info.offset_data + info.size for info in tar}
        starts = {info.name: info.offset for info in tar}
    cut_file = tmp_path / "cut.tar"
    truncated = engine.Fault("truncated_tar")
    for cut in range(0, len(whole), 173):
        cut_file.write_bytes(whole[:cut])
        found = read(cut_file)
        if cut >= ends["2.txt"] + 1024:  # a block of zeros behind the last member
            assert found == read(path)
            continue
        samples = [s for s in found if isinstance(s, tars.TarSample)]
        assert found.count(truncated) == 1
        # What was read whole before is kept, in order.
        complete = [k for k in "012" if cut >= ends[f"{k}.txt"]]
        assert [s.key for s in samples][: len(complete)] == [f"t/{k}" for k in complete]
        within = [n for n in starts if starts[n] + 512 <= cut < ends[n]]
        assert found.count(engine.Drop("truncated")) == len(within)
        for one in samples:  # and no image or caption is ever cut short
            key = one.key[2:]
            assert one.image == dict(members)[f"{key}.jpg"]
            assert one.caption in ("", dict(members)[f"{key}.txt"].decode())


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    path = write(tmp_path / "t.tar", [*sample("0", caption="a"), *sample("1", caption="b")])
    content = bytearray(path.read_bytes())
    content[content.find(b"1.jpg")] ^= 1
    path.write_bytes(content)
    found = read(path)
    kept = tars.TarSample("t/0", b"image of 0", "a", {})
    assert found == [engine.Fault("truncated_tar"), kept]


def test_other_files_are_unreadable_tars(tmp_path):
    (tmp_path / "t.tar").write_bytes(b"\x1f\x8b" + bytes(range(256)) * 8)
    assert read(tmp_path / "t.tar") == [engine.Fault("unreadable_tar")]
    (tmp_path / "t.tar").write_bytes(b"")
    assert read(tmp_path / "t.tar") == [engine.Fault("truncated_tar")]
    assert read(write(tmp_path / "t.tar", [])) == []


def test_pools_name_their_tars_by_path_and_in_order(tmp_path):
    for name in ("b/00001", "b/00000", "a/00000"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / f"{name}.tar", sample(name, caption="x"))
    (tmp_path / "b" / "stats.json").write_text("{}")
    pool = tars.open_tars(str(tmp_path))
    assert [tar.name for tar in pool.shards()] == ["a/00000", "b/00000", "b/00001"]
    one = tars.open_tars(str(tmp_path / "b" / "*0.tar"))
    assert [tar.name for tar in one.shards()] == ["00000"]
    assert one.name == "b"
    before = pool.fingerprint
    write(tmp_path / "b" / "00001.tar", sample("x" * 200, caption="x" * 10_000))
    assert pool.fingerprint != before
    for wrong in (tmp_path / "c", tmp_path / "*.zip"):
        with pytest.raises(UserError, match="no tars"):
            tars.open_tars(str(wrong))
