"""Our tar reader beside the standard library's, on tars of every kind."""

import io
import tarfile

import numpy as np
import pytest

from clipdg_jax.data import tar_reader


def ours(data, wanted=lambda name: True):
    """[(name, content or None)] of the regular files, and the error at the end, or ""."""
    reader = tar_reader.TarReader(io.BufferedReader(io.BytesIO(data), 4096))
    found = []
    try:
        while (name := reader.next()) is not None:
            found.append((name, reader.read() if wanted(name) else "skipped"))
    except tar_reader.TarError as error:
        return found, str(error)
    return found, ""


def theirs(data):
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar if info.isfile()]


def random_tar(seed):
    """Files, links and folders under short and long names, in one of the three formats."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    form = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[seed % 3]
    headers = {"comment": "for all", "mtime": "1.5"} if seed % 2 and seed % 3 == 2 else None
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=headers) as tar:
        for number in range(rng.integers(1, 30)):
            folder = "/".join(["some_folder"] * rng.integers(0, 12))
            name = f"{folder}/{'n' * rng.integers(0, 80)}{number}.jpg"
            if form != tarfile.USTAR_FORMAT and number % 5 == 0:
                name += "x" * 300 + "é猫"
            info = tarfile.TarInfo(name)
            kind = rng.integers(6)
            if kind == 0:
                info.type, info.linkname = tarfile.SYMTYPE, "t" * int(rng.integers(1, 99))
            elif kind == 1:
                info.type = tarfile.DIRTYPE
            elif kind == 2 and form == tarfile.GNU_FORMAT:
                info.type, info.linkname = tarfile.LNKTYPE, "t" * 200
            else:
                info.size = int(rng.choice([0, 1, 511, 512, 513, 5000]))
                if form != tarfile.USTAR_FORMAT:
                    info.mtime = float(rng.random() * 2e9)
            tar.addfile(info, io.BytesIO(rng.bytes(info.size)))
    return buffer.getvalue()


def test_the_same_files_as_tarfile_finds():
    seen = 0
    for seed in range(150):
        data = random_tar(seed)
        expected = theirs(data)
        assert ours(data) == (expected, ""), seed
        skipped = [(name, content if len(name) % 2 else "skipped") for name, content in expected]
        assert ours(data, lambda name: len(name) % 2) == (skipped, "")
        seen += len(expected)
    assert seen > 1000


def block(name=b"a.jpg", size=b"00000000003\0", kind=b"0", prefix=b"", total=None, signed=False):
    """A header block made by hand."""
    header = bytearray(512)
    header[: len(name)] = name
    header[124 : 124 + len(size)] = size
    header[156:157] = kind
    header[345 : 345 + len(prefix)] = prefix
    header[148:156] = b" " * 8
    number = sum(byte - 256 * (signed and byte > 127) for byte in header)
    header[148:156] = b"%06o\0 " % (number if total is None else total)
    return bytes(header)


def padded(content):
    return content + bytes(-len(content) % 512)


END = bytes(1024)
ABC = padded(b"abc")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (block(prefix=b"folder") + ABC, [("folder/a.jpg", b"abc")]),
        (block(name=b"n" * 100, prefix=b"p" * 155) + ABC, [(f"{'p' * 155}/{'n' * 100}", b"abc")]),
        (block(size=b"\x80" + bytes(10) + b"\3") + ABC, [("a.jpg", b"abc")]),
        (block(size=b"          3 ") + ABC, [("a.jpg", b"abc")]),
        (block(size=b"") + block(name=b"b.jpg") + ABC, [("a.jpg", b""), ("b.jpg", b"abc")]),
        (block(kind=b"\0") + ABC, [("a.jpg", b"abc")]),
        (block(kind=b"7") + ABC, [("a.jpg", b"abc")]),
        (block(name=b"old/", kind=b"\0") + block() + ABC, [("a.jpg", b"abc")]),
        # A volume's label, or whatever else is not known, has content and is no file.
        (block(kind=b"V") + ABC + block() + ABC, [("a.jpg", b"abc")]),
        # A link has none, whatever its size says.
        (block(kind=b"1") + block() + ABC, [("a.jpg", b"abc")]),
        (
            block(kind=b"x", size=b"%011o\0" % 12) + padded(b"12 path=b/c\n") + block() + ABC,
            [("b/c", b"abc")],
        ),
        (
            block(kind=b"x", size=b"%011o\0" % 9) + padded(b"9 size=3\n") + block(size=b"0") + ABC,
            [("a.jpg", b"abc")],
        ),
        # A time like a path is not one; and what is for one file is not for the next.
        (
            block(kind=b"x", size=b"%011o\0" % 27)
            + padded(b"16 comment=path\n11 path=bc\n")
            + (block() + ABC) * 2,
            [("bc", b"abc"), ("a.jpg", b"abc")],
        ),
        (block(name=b"caf\xc3\xa9") + ABC, [("café", b"abc")]),
    ],
)
def test_headers_made_by_hand(data, expected):
    assert ours(data + END) == (expected, "")
    assert theirs(data + END) == expected


def test_a_name_that_is_not_utf8_is_escaped():
    data = block(name=b"caf\xe9.jpg", signed=True) + ABC  # with the sum as old programs made it
    assert ours(data + END) == ([("caf\\xe9.jpg", b"abc")], "")
    assert ours(block(name=b"caf\xe9.jpg") + ABC + END)[0] == [("caf\\xe9.jpg", b"abc")]


def test_sparse_files_are_expanded():
    # GNU's old format: two pieces of a file of 2000 bytes, with holes.
    header = bytearray(block(kind=b"S", size=b"%011o\0" % 6))
    for place, (offset, length) in enumerate([(10, 3), (1500, 3)]):
        header[386 + 24 * place :][:24] = b""
        header[386 + 24 * place : 410 + 24 * place] = b"%011o\0%011o\0" % (offset, length)
    header[483:495] = b"%011o\0" % 2000
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + padded(b"abcdef") + block(name=b"b.jpg") + ABC + END
    content = bytearray(2000)
    content[10:13], content[1500:1503] = b"abc", b"def"
    assert ours(data) == ([("a.jpg", bytes(content)), ("b.jpg", b"abc")], "")
    assert theirs(data) == ours(data)[0]
    pax_file = block(kind=b"x", size=b"%011o\0" % 9) + padded(b"9 path=c\n") + block() + ABC
    found = ours(data[:-1024] + pax_file + END, lambda name: name == "c")
    assert found == ([("a.jpg", "skipped"), ("b.jpg", "skipped"), ("c", b"abc")], "")
    # And one with its map in a pax header.
    pax = b"".join(
        b"%d %s\n" % (len(text) + 4, text)
        for text in (b"GNU.sparse.map=10,3,1500,3", b"GNU.sparse.size=2000", b"GNU.sparse.name=a")
    )
    data = block(kind=b"x", size=b"%011o\0" % len(pax)) + padded(pax) + block(size=b"6")
    data += padded(b"abcdef") + block(name=b"b.jpg") + ABC + END
    assert ours(data)[0][1:] == [("b.jpg", b"abc")]
    assert ours(data)[0] == theirs(data)


@pytest.mark.parametrize(
    ("data", "files", "words"),
    [
        (b"", 0, "cut"),
        (block()[:511], 0, "cut"),
        (block() + b"ab", 1, "cut"),
        (block() + ABC, 1, "cut"),
        (block(kind=b"V", size=b"\x80" + b"\xff" * 11) + ABC + END, 0, "cut"),
        (block() + ABC + block(total=1234) + ABC + END, 1, "sum"),
        (block() + ABC + block(size=b"00000000zzz\0") + END, 1, "number"),
        (block() + ABC + block(size=b"-1") + END, 1, "number"),
        (block(kind=b"x") + b"abc", 0, "cut"),
        (block(kind=b"x", size=b"%011o\0" % 9) + padded(b"9 path-3\n"), 0, "cut"),
        (block(kind=b"x", size=b"%011o\0" % 9) + padded(b"x size=3\n"), 0, "pax"),
        (block(kind=b"x", size=b"%011o\0" % 9) + padded(b"9 size=z\n") + block(), 0, "size"),
    ],
)
def test_what_is_broken_is_an_error_after_what_can_be_read(data, files, words):
    found, error = ours(data)
    assert len(found) == files
    assert words in error
    assert (found == [("a.jpg", None)]) == (data == block() + b"ab")


def test_a_size_beyond_the_end_of_the_file_is_a_cut():
    data = block(size=b"\x80" + b"\xff" * 11) + ABC + END
    assert ours(data) == ([("a.jpg", None)], "cut before its end")


@pytest.mark.parametrize("data", [bytes(range(256)) * 4, block(total=99) + END])
def test_no_tar_at_all_is_told_from_a_broken_one(data):
    reader = tar_reader.TarReader(io.BytesIO(data))
    with pytest.raises(tar_reader.TarError) as error:
        reader.next()
    assert error.value.at_start


def test_no_changed_bit_of_a_header_goes_unnoticed():
    whole = block(name=b"some/name.jpg", prefix=b"p") + ABC + END
    for bit in range(512 * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        found, error = ours(bytes(data))
        # Save in the blanks and zeros of the sum itself.
        assert error or (148 <= bit // 8 < 156 and found == [("p/some/name.jpg", b"abc")])
