"""The signatures: a row for each item, whatever becomes of it, with any number of processes."""

import hashlib

import cv2
import numpy as np
import pytest

from clipdg_jax.data import demo, schema, shards, tars
from clipdg_jax.domains.dedup import descriptor, hashes, signatures
from clipdg_jax.errors import UserError
from tests.domains.dedup import small_pools


def jpeg(image):
    return cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()


def picture(index, size=24):
    return demo.render(demo.World(size), "painting", 0, index).image


def pool():
    """Two shards: every kind of item; and pictures alone."""
    good = [schema.Record(f"a/{i}", jpeg(picture(i)), "caption") for i in range(3)]
    copy = schema.Record("a/copy", good[1].image, meta={"copy_of": "a/1", "copy": "exact"})
    tar = tars.TarSample("a/tar", jpeg(picture(9)), "", {})
    items = (
        good[0],
        schema.Record("a/bad", b"\xff\xd8\xffnot a picture"),
        shards.RecordError("damaged"),
        good[1],
        tars.TarSample("a/none", None, "text", {}),
        good[0],
        copy,
        tar,
        schema.Record("a/flat", jpeg(np.full((9, 30, 3), 200, np.uint8))),
    )
    return [
        small_pools.Shard("a", items),
        small_pools.Shard("b", (*good[1:], schema.Record("b/3", jpeg(picture(9))))),
        small_pools.Shard("c", ()),
    ]


class Means:
    """An encoder of the mean colour."""

    image_size = 16

    def __init__(self):
        self.seen = []

    def features(self, images):
        self.seen.append(len(images))
        return images.mean((1, 2), dtype=np.float32)


def sign(folder, processes=0, embed=True, encoder=None, thumbnails=True):
    signatures.sign(
        pool(),
        folder,
        signatures.Sign(embed, encoder),
        thumbnails=thumbnails,
        processes=processes,
        process_index=0,
        process_count=1,
    )
    return signatures.Signatures(folder, [signatures.Member("pool", 0, 3)])


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    return sign(tmp_path_factory.mktemp("signed") / "s")


def test_a_row_for_each_item_that_a_shard_yields(signed):
    table = signed.table(0, ["key", "error", "width", "height", "copy_of", "copy"]).to_pylist()
    assert len(signed) == 8 + 3
    assert signed.starts.tolist() == [0, 8, 11, 11]
    told = [(row["key"], row["error"]) for row in table]
    assert told == [
        ("a/0", None),
        ("a/bad", "corrupt_image"),
        ("a/1", None),
        ("", "no_image"),
        ("", "duplicate_key"),
        ("a/copy", None),
        ("a/tar", None),
        ("a/flat", None),
    ]
    assert signed.errors == {
        "corrupt_image": 1,
        "no_image": 1,
        "duplicate_key": 1,
        "unreadable_record": 1,
    }
    assert table[5] == {**table[2], "key": "a/copy", "copy_of": "a/1", "copy": "exact"}
    assert (table[7]["width"], table[7]["height"]) == (30, 9)
    assert signed.pixels(0).tolist() == [576, 0, 576, 0, 0, 576, 576, 270]


def test_sums_hashes_and_embeddings_are_the_images_own(signed):
    rows = signed.table(1, ["sha256", "phash", "mirror", "thumbnail", "colours"]).to_pylist()
    embeddings = signed.embeddings(1)
    assert embeddings.dtype == np.float16
    for row, embedding, index in zip(rows, embeddings, (1, 2, 9), strict=True):
        data = jpeg(picture(index))
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        image = np.ascontiguousarray(image)
        thumbnail = hashes.thumbnail(image)
        assert row["sha256"] == hashlib.sha256(data).digest()
        assert row["phash"] == hashes.phash(image)
        assert row["mirror"] == hashes.phash(np.ascontiguousarray(image[:, ::-1]))
        assert row["thumbnail"] == thumbnail.tobytes()
        assert row["colours"] == hashes.colours(image).tobytes()
        np.testing.assert_allclose(embedding, descriptor.describe(thumbnail[None])[0], atol=1e-3)
    assert not signed.embeddings(0)[[1, 3, 4, 7]].any()  # Errors, and what has no structure.
    assert signed.embeddings(2).shape == (0, descriptor.WIDTH)


def test_descriptors_are_alike_for_mirror_images_only():
    thumbnails = np.stack([hashes.thumbnail(picture(i)) for i in range(5)])
    own, mirrored = descriptor.describe(thumbnails), descriptor.describe(thumbnails[:, :, ::-1])
    np.testing.assert_allclose(own, mirrored, atol=1e-5)
    alike = own @ own.T
    np.testing.assert_allclose(np.diag(alike), 1, atol=1e-5)
    assert alike[np.triu_indices(5, 1)].max() < 0.9


def test_the_same_files_with_two_processes(signed, tmp_path):
    again = sign(tmp_path / "s", processes=2)
    for shard in range(2):
        ours, theirs = (
            s._directory.joinpath(f"{shard:06d}.parquet").read_bytes() for s in (signed, again)
        )
        assert ours == theirs
        np.testing.assert_array_equal(signed.embeddings(shard), again.embeddings(shard))


def test_an_encoder_sees_whole_batches_of_crops(tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "BATCH", 2)
    encoder = Means()
    signed = sign(tmp_path / "s", encoder=encoder, thumbnails=False)
    assert encoder.seen == [2, 2, 2, 2, 2, 1]
    assert signed.width == 3
    first = cv2.imdecode(np.frombuffer(jpeg(picture(0)), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_allclose(signed.embeddings(0)[0], first.mean((0, 1)), rtol=0.02)
    assert not signed.embeddings(0)[[1, 3, 4]].any()
    assert signed.embeddings(0)[7].any()  # To an encoder, a flat image is an image.
    with pytest.raises(UserError, match="is damaged"):
        signed.table(0, ["thumbnail"])


def test_keys_and_members_by_row_number(tmp_path):
    signed = small_pools.signed(tmp_path / "s", small_pools.families(12), references=1)
    assert signed.pool_start == 4
    assert signed.keys(np.array([0, 3, 4, 11])).to_pylist() == ["r/0", "r/3", "r/4", "r/11"]
    assert [signed.member(row) for row in (0, 3, 4, 11)] == ["test", "test", "pool", "pool"]
    assert set(signed.pixels(0).tolist()) == {signatures.REFERENCE}
    (tmp_path / "s" / "000001.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"000001\.parquet: is damaged .* remove its folder"):
        signed.table(1, ["key"])
