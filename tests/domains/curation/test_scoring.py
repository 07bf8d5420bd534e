"""Scores of a pool: the classifier's own, whatever the division of the work; what is refused."""

import hashlib

import cv2
import numpy as np
import pytest

from clipdg_jax.data import engine, files, pool, tars
from clipdg_jax.domains import calibration, inputs
from clipdg_jax.domains.curation import scoring, table
from clipdg_jax.domains.dedup import hashes
from clipdg_jax.errors import UserError
from tests.domains import small_datasets
from tests.domains.curation import small_curation

DAMAGED = (3, 13)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier")
    small_datasets.saved(directory)
    return scoring.Saved.at(directory)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_curation.pool(tmp_path_factory.mktemp("pool") / "pool", damaged=DAMAGED)


def score(source, saved, directory, process_index=0, process_count=1):
    return scoring.score(
        source.shards(),
        saved,
        directory,
        identity={"pool": source.fingerprint},
        to_records=pool.ToRecords(),
        batch=4,
        threads=2,
        process_index=process_index,
        process_count=process_count,
    )


def sums(directory, shards=3):
    return [files.sha256(table.path_of(directory, index)) for index in range(shards)]


@pytest.fixture(scope="module")
def scores(source, saved, tmp_path_factory):
    directory = tmp_path_factory.mktemp("scores")
    counts = score(source, saved, directory)
    assert counts.dropped == {"corrupt_image": 2}
    assert (counts.seen, counts.written) == (30, 28)
    return directory


def test_every_row_says_what_the_classifier_says_of_the_image(scores, source, saved):
    classifier = saved.load()
    for index in range(3):
        found = table.read(scores, index).to_pylist()
        rows = [row for row in range(10) if 10 * index + row not in DAMAGED]
        assert [one["row"] for one in found] == rows
        for one in found:
            record = source.record(10 * index + one["row"])
            alone = inputs.Inputs([record])
            own = classifier.method.score(alone)[0]
            assert (one["natural"], one["rendition"]) == pytest.approx(own.tolist(), abs=1e-6)
            decided = calibration.decide(own[None], classifier.calibration)[0]
            assert one["decision"] == decided
            pixels = cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR)
            assert one["phash"] == hashes.phash(np.ascontiguousarray(pixels[..., ::-1]))
            assert one["sha256"] == hashlib.sha256(record.image).hexdigest()
            assert (one["width"], one["height"]) == (14, 12)
            assert (one["key"], one["label"]) == (record.key, record.label)
            assert one["domain"] == (10 * index + one["row"]) % 3
            assert one["url"] == record.meta["url"]


def test_bytes_do_not_depend_on_hosts_or_interruptions(
    scores, source, saved, tmp_path, monkeypatch
):
    for host in (1, 0):
        score(source, saved, tmp_path / "hosts", process_index=host, process_count=2)
    assert sums(tmp_path / "hosts") == sums(scores)

    class Stop(Exception):
        pass

    def stop(self):
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(table.Output, "commit", stop)
        with pytest.raises(engine.ShardError, match="Stop"):
            score(source, saved, tmp_path / "stopped")
    assert not list((tmp_path / "stopped").glob("*parquet*"))
    score(source, saved, tmp_path / "stopped")
    assert sums(tmp_path / "stopped") == sums(scores)


def test_tars_score_as_the_dataset_does(scores, saved, tmp_path):
    small_curation.tars(tmp_path / "tars", damaged=DAMAGED)
    found = tars.open_tars(str(tmp_path / "tars"))
    score(found, saved, tmp_path / "scores")
    for index in range(3):
        own, other = (table.read(d, index).to_pydict() for d in (tmp_path / "scores", scores))
        assert own["key"] == [f"{index:05d}/{10 * index + row:05d}" for row in own["row"]]
        # Tars tell no domain and no class.
        for name in set(own) - {"key", "domain", "label"}:
            assert own[name] == other[name], name
        assert set(own["domain"]) == set(own["label"]) == {-1}


def test_scores_of_another_classifier_are_refused_by_name(scores, source, tmp_path):
    small_datasets.saved(tmp_path, why="another")
    other = scoring.Saved.at(tmp_path)
    with pytest.raises(UserError, match=f"begun with classifier=.*now classifier.*{other.title}"):
        score(source, other, scores)


def test_a_classifier_that_was_replaced_meanwhile_is_refused(tmp_path):
    small_datasets.saved(tmp_path)
    with pytest.raises(UserError, match="another classifier was saved here meanwhile"):
        scoring.Saved(tmp_path, "0" * 64).load()
    with pytest.raises(UserError, match="is not a saved classifier"):
        scoring.Saved.at(tmp_path / "nothing")


def test_a_damaged_file_of_scores_is_named(scores, tmp_path):
    path = table.path_of(tmp_path, 0)
    path.write_bytes(table.path_of(scores, 0).read_bytes()[:100])
    with pytest.raises(UserError, match=r"000000.parquet: is missing or damaged.*000000.json"):
        table.read(tmp_path, 0)


def test_ahead_gives_all_in_order_and_the_error_at_its_place():
    made = iter([1, 2, 3])

    def make():
        value = next(made, None)
        if value == 3:
            raise ValueError("three")
        return value

    ahead = scoring._ahead(make, 2)
    assert [next(ahead)[0], next(ahead)[0]] == [1, 2]
    with pytest.raises(ValueError, match="three"):
        next(ahead)


def test_prepared_inputs_are_those_that_are_decoded_when_asked_for(source):
    records = [source.record(i) for i in (0, 1, 3, 5)]
    records.append(records[0])
    lazy, prepared = inputs.Inputs(records), inputs.Inputs(records)
    looks = prepared.prepare((8,), lambda image: image.shape)
    assert looks == [(12, 14, 3), (12, 14, 3), None, (12, 14, 3), (12, 14, 3)]
    for size in (8, 10):  # One that was prepared, and one that was not.
        np.testing.assert_array_equal(prepared.images(size), lazy.images(size))
    np.testing.assert_array_equal(prepared.valid, lazy.valid)
    assert prepared.sizes == lazy.sizes == (8, 10)
