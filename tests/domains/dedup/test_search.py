"""The search by embeddings: what brute force finds, within memory, stopped anywhere."""

import hashlib
import os

import numpy as np
import pytest

from clipdg_jax.domains.dedup import buckets, clusters, search, signatures, similar
from clipdg_jax.domains.dedup.plan import Plan
from clipdg_jax.errors import UserError
from tests.domains.dedup import small_pools

RULE = similar.Rule(clusters.EMBEDDING, 0.85)
MEMORY = search.Memory(1.5)


def plan(count, size=1000, probes=1):
    return Plan(count, size, probes, 64, 4, 0)


def run(signed, work, size=1000, probes=1, rule=RULE, memory=MEMORY):
    everyone = np.ones(len(signed), bool)
    return search.by_embedding(
        signed, everyone, rule, plan(len(signed), size, probes), memory, work
    )


def brute_force(signed, embeddings):
    """dropped -> kept, by comparing all with all."""
    vectors = embeddings.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pair = np.argwhere(np.triu(vectors @ vectors.T >= RULE.cosine, 1))
    pixels = np.concatenate([signed.pixels(shard) for shard in range(signed.shards)])
    a, b = pair.T
    made = clusters.edges((pixels[a], pixels[b]), (a, b), clusters.EMBEDDING)
    return as_dict(clusters.stars(made, len(signed)))


def as_dict(acted):
    return dict(zip(acted["dropped"].tolist(), acted["kept"].tolist(), strict=True))


@pytest.mark.parametrize("references", [0, 1])
def test_one_bucket_finds_what_brute_force_finds(tmp_path, references):
    embeddings = small_pools.families(500)
    signed = small_pools.signed(tmp_path / "s", embeddings, references=references)
    acted, layout = run(signed, tmp_path / "w")
    expected = brute_force(signed, embeddings)
    assert as_dict(acted) == expected
    assert len(expected) > 100
    assert layout.sizes().tolist() == [500]
    vectors = embeddings.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = (vectors[acted["dropped"]] * vectors[acted["kept"]]).sum(1)
    np.testing.assert_allclose(acted["cosine"], cosine, atol=1e-5)
    assert not (set(range(167)) & set(expected)) or not references


def test_blocks_of_any_size_find_the_same(tmp_path):
    signed = small_pools.signed(tmp_path / "s", small_pools.families(300), references=1)
    _, layout = run(signed, tmp_path / "w")
    entries = layout.read(0)
    expected = np.sort(similar.find(entries, RULE, block=512), order=("kept", "dropped"))
    for block in (64, 128):
        found = np.sort(similar.find(entries[::-1], RULE, block), order=("kept", "dropped"))
        for field in ("kept", "dropped", "kept_pixels", "dropped_pixels"):
            np.testing.assert_array_equal(found[field], expected[field])
    # One of many that are alike proposes for all: pairs are as many as records, not their square.
    alike = entries.copy()
    alike["embedding"] = entries["embedding"][0]
    alike["pixels"] = 7
    assert len(similar.find(alike, RULE, block=64)) == 299


def test_buckets_hold_every_record_at_its_nearest_centroids(tmp_path):
    embeddings = small_pools.families(400)
    signed = small_pools.signed(tmp_path / "s", embeddings)
    acted, layout = run(signed, tmp_path / "w", size=60, probes=2)
    centroids = np.load(tmp_path / "w/centroids.npy")
    assert len(centroids) == 7
    nearest = np.argsort(-(embeddings.astype(np.float32) @ centroids.T), axis=1)[:, :2]
    for bucket in range(7):
        entries = layout.read(bucket)
        assert (
            sorted(entries["row"].tolist()) == np.flatnonzero((nearest == bucket).any(1)).tolist()
        )
        np.testing.assert_array_equal(entries["embedding"], embeddings[entries["row"]])
        np.testing.assert_array_equal(entries["pixels"], entries["row"] % 3 + 1)
    expected = brute_force(signed, embeddings)
    assert len(as_dict(acted).items() & expected.items()) > 0.9 * len(expected)


def sums(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock-00000"
    }


@pytest.mark.parametrize("place", ["fit", "nearest", "write", "publish", "find"])
def test_stopped_anywhere_it_ends_with_the_same_bytes(tmp_path, monkeypatch, place):
    signed = small_pools.signed(tmp_path / "s", small_pools.families(400))
    run(signed, tmp_path / "whole", size=60, probes=2)

    module, name = {
        "fit": (search.kmeans, "fit"),
        "nearest": (buckets.kmeans, "nearest"),
        "write": (os, "pwrite"),
        "publish": (buckets.files, "write_json"),
        "find": (similar, "find"),
    }[place]
    real, calls = getattr(module, name), 0

    def stopping(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls in ((1,) if place == "fit" else (2, 7)):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, stopping)
    monkeypatch.setattr(buckets, "_PART", 50)
    stops = 0
    while True:
        try:
            # So little memory that what is copied is written piece by piece.
            available = MEMORY.OVERHEAD / 2**30 + 8e-5
            acted, _ = run(signed, tmp_path / "w", 60, 2, memory=search.Memory(available))
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops in ((1,) if place == "fit" else (1, 2))
    assert sums(tmp_path / "w") == sums(tmp_path / "whole")
    assert len(acted) > 80


def test_a_bucket_above_the_bound_is_named_and_a_higher_bound_goes_on(tmp_path):
    signed = small_pools.signed(tmp_path / "s", small_pools.families(400))
    small = search.Memory(MEMORY.OVERHEAD / 2**30 + 2e-5)
    with pytest.raises(UserError, match=r"ram_gib: is .* 64 embeddings .* need .* or more"):
        run(signed, tmp_path / "tiny", memory=search.Memory(MEMORY.OVERHEAD / 2**30 + 1e-6))
    with pytest.raises(UserError, match=r"bucket \d has .* records and needs .*ram_gib=.*size"):
        run(signed, tmp_path / "w", memory=small)
    before = sums(tmp_path / "w")
    assert "centroids.npy" in before
    assert "buckets.bin" not in before
    acted, _ = run(signed, tmp_path / "w")
    assert {name: s for name, s in sums(tmp_path / "w").items() if name in before} == before
    assert as_dict(acted) == brute_force(signed, small_pools.families(400))


def test_what_does_not_take_part_is_in_no_bucket(tmp_path):
    embeddings = small_pools.families(200)
    embeddings[3] = 0
    signed = small_pools.signed(tmp_path / "s", embeddings)
    part = np.arange(200) % 5 != 0
    _, layout = search.by_embedding(
        signed, part, RULE, plan(int(part.sum())), MEMORY, tmp_path / "w"
    )
    expected = np.setdiff1d(np.flatnonzero(part), [3])
    assert sorted(layout.read(0)["row"].tolist()) == expected.tolist()


def test_memory_and_plan():
    with pytest.raises(UserError, match=r"ram_gib: is 0.5; libraries alone take 0.75 GiB"):
        search.Memory(0.5).check()
    with pytest.raises(UserError, match=r"config.buckets.probes: is 0"):
        Plan(10, 5, 0, 1, 1, 0).check()
    large = Plan(400_000_000, 32_768, 1, 64, 10, 0)
    assert large.buckets == 12_208
    assert large.flops(768)["within buckets"] == 400_000_000 * 16_384 * 1536
    # Where the work is least, both kinds of comparisons are as many.
    even = Plan(2 * 10**6, 2000, 1, 64, 10, 0).flops(512)
    assert even["within buckets"] == even["nearest centroids"]
    assert "12,208 of 32,768 records" in large.report(768, 2700, 1700, 9000)
    assert signatures.PICTURE_BYTES == 1152
