"""The writing pass: every dataset adds up against the pool, and says what was decided."""

import collections

import numpy as np
import pytest

from clipdg_jax.data import engine, pool, schema, tokenizer, writing
from clipdg_jax.domains.curation import release, routing, samples, selection, table
from clipdg_jax.errors import UserError
from tests.domains.curation import small_curation

NAMES = ("natural", "rendition", "ambiguous")
VOCAB = 600


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A pool of 30 records; random scores, two duplicates, one unscored; and the datasets."""
    root = tmp_path_factory.mktemp("case")
    source = small_curation.pool(root / "pool")
    rng = np.random.default_rng(2)
    shards = [
        [(f"r/{i:03d}", *rng.random(2).tolist(), i % 3) for i in range(10 * s, 10 * s + 10)]
        for s in range(3)
    ]
    del shards[1][0]
    scored = small_curation.scored(root / "scores", shards, [(0, 4), (2, 9)])
    selected = selection.select(scored, ("natural",), 0)
    judge = routing.ByScores(scored, NAMES, selected.drawn, 0)
    targets = {
        name: writing.Target(root / name, tokenizer=tokenizer.get_tokenizer(VOCAB).hash)
        for name in (*NAMES, "random-natural")
    }
    written = writing.write_datasets(
        targets,
        routing.numbered(source.shards()),
        routing.Route(judge, pool.ToRecords(), pool.Tokenise(VOCAB)),
        work=root / "work",
        config={"tool": "a test"},
    )
    rows = {one[0]: one for rows in shards for one in rows}
    return source, scored, selected, written, rows


def domain_of(row):
    natural, rendition = row[1] >= 0.5, row[2] >= 0.5
    if natural != rendition:
        return "natural" if natural else "rendition"
    return "ambiguous"


def test_each_dataset_holds_what_was_decided_in_the_pools_order(case):
    source, _, _, written, rows = case
    duplicates = {"r/004", "r/029"}
    for name in NAMES:
        records = [written[name].record(i) for i in range(len(written[name]))]
        wanted = [
            key for key, row in rows.items() if domain_of(row) == name and key not in duplicates
        ]
        assert [record.key for record in records] == wanted
        for record in records:
            own = source.record(int(record.key[2:]))
            assert record.image == own.image
            assert record.domain == name
            assert record.meta == {**own.meta, "true_domain": own.domain}
            (tokens,) = tokenizer.get_tokenizer(VOCAB).encode([own.caption])
            np.testing.assert_array_equal(record.tokens, tokens)


def test_what_is_left_out_adds_up_by_reason(case):
    _, _, selected, written, rows = case
    kinds = collections.Counter(
        "conflict" if min(row[1:3]) >= 0.5 else domain_of(row)
        for key, row in rows.items()
        if key not in ("r/004", "r/029")
    )
    reason = {name: f"decided_{name}" for name in NAMES} | {"conflict": "conflict"}
    both = {"duplicate": 2, "corrupt_image": 1}
    for name in NAMES:
        own = {name, "conflict"} if name == "ambiguous" else {name}
        left = {reason[kind]: n for kind, n in kinds.items() if kind not in own}
        assert written[name].manifest.dropped == left | both
        assert written[name].manifest.seen == 30
    control = written["random-natural"].manifest
    assert control.records == written["natural"].manifest.records == kinds["natural"]
    assert control.dropped == both | {"not_drawn": kinds.total() - kinds["natural"]}
    assert selected.by_outcome == {**{k: kinds[k] for k in (*NAMES, "conflict")}, "duplicate": 2}


def test_a_record_without_a_domain_gets_the_decided_one_and_no_more():
    record = schema.Record("k", b"", meta={"url": "u"})
    placed = routing.placed(record, "natural")
    assert (placed.domain, placed.meta) == ("natural", {"url": "u"})


def test_by_one_decider_alone(case):
    source, scored, _, _, rows = case
    judge = routing.ByDecider(scored.scores, 1, 0.3, "clean")
    for index in range(3):
        records = iter(source.records(10 * index, 10 * index + 10))
        for outcome in judge(index, records):
            if isinstance(outcome, engine.Drop):
                assert outcome == engine.Drop("corrupt_image")
            else:
                taken = rows[outcome.record.key][2] >= 0.3
                assert outcome.to == (("clean",) if taken else ())
                assert outcome.reason == "not_rendition"


def test_a_pool_that_changed_since_it_was_scored_is_refused(case):
    source, scored, selected, _, _ = case
    judge = routing.ByScores(scored, NAMES, selected.drawn, 0)
    records = source.records(0, 10)
    with pytest.raises(UserError, match=r"000000.parquet: row 1 is 'r/001', but 'r/002' in the po"):
        list(judge(0, iter([records[0], *records[2:]])))
    with pytest.raises(UserError, match="but no_image in the pool"):
        list(judge(0, iter([records[0], engine.Drop("no_image"), *records[2:]])))


def test_the_release_table_joins_back_to_the_pool(case, tmp_path):
    _, scored, selected, written, rows = case
    count = release.write(tmp_path / "release.parquet", scored, NAMES, selected.drawn, 0)
    found = table.pq.read_table(tmp_path / "release.parquet").to_pylist()
    assert count == len(found) == sum(len(one) for one in written.values())
    for name, one in written.items():
        keys = [row["key"] for row in found if row["dataset"] == name]
        assert keys == [one.record(i).key for i in range(len(one))]
    for row in found:
        _, natural, rendition, _ = rows[row["key"]]
        assert (row["natural"], row["rendition"]) == pytest.approx((natural, rendition))
        expected = "conflict" if min(natural, rendition) >= 0.5 else domain_of(rows[row["key"]])
        assert row["decision"] == expected


def test_samples_are_the_extremes_of_what_was_written(case):
    _, scored, selected, written, rows = case
    picks = samples.pick(scored, NAMES, selected.drawn, 0, 3)
    assert list(picks["random-natural"]) == [samples.RANDOM]

    def sureness(name, key):
        natural, rendition = rows[key][1:3]
        return {"natural": natural, "rendition": rendition}.get(name, 1 - natural - rendition)

    for name in NAMES:
        one = written[name]
        keys = [one.record(i).key for i in range(len(one))]
        falling = sorted(range(len(keys)), key=lambda i: -sureness(name, keys[i]))
        assert picks[name][samples.SURE].index.tolist() == falling[:3]
        assert picks[name][samples.UNSURE].index.tolist() == falling[::-1][:3]
        shown = picks[name][samples.RANDOM]
        assert len(set(shown.index.tolist())) == 3
        for index, probability in zip(shown.index.tolist(), shown.probability, strict=True):
            assert probability.tolist() == pytest.approx(rows[keys[index]][1:3])
