"""From labels to precision and shares; and twenty audits from end to end."""

import numpy as np
import pytest

from clipdg_jax.data import schema
from clipdg_jax.domains import annotators, labels
from clipdg_jax.domains.curation import audit, audit_draws, audit_report, routing
from clipdg_jax.evaluation import stats
from tests.domains.curation import small_audit


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_audit.make(tmp_path_factory.mktemp("world"), 3000)


def draw(store, world, n=60, seed=0, names=("natural", "rendition"), pool=150):
    queues = [
        audit_draws.of_dataset(store, name, world.written(name), n, seed, routing.TRUE_DOMAIN)
        for name in names
    ]
    if pool:
        drawable = audit_draws.frame(world.scored())
        queues.append(audit_draws.of_pool(store, world.pool, drawable, pool, seed))
    return queues


def test_twenty_audits_cover_the_truth_eighteen_times(world, tmp_path):
    """With three annotators who err, and an adjudicator who does."""
    inside: dict[str, int] = {}
    for seed in range(20):
        with labels.Store(tmp_path / f"{seed}.sqlite") as store:
            queues = draw(store, world, 120, seed, pool=220)
            for queue in queues:
                annotators.label(
                    store, queue.draw, queue.truth, annotators=3, error=0.01, seed=seed
                )
            said = audit.read(store, queues, min_annotators=3)
        assert not any(one.missing for one in said)
        figures = {}
        for queue, one in zip(queues[:2], said[:2], strict=True):
            found = audit.precision(queue, one, 0.98)
            figures[queue.name] = found, world.precision(queue.name)
        shares, _, note = audit.pool_shares(queues[2], said[2])
        assert note == ""
        for number, name in enumerate(schema.DOMAINS):
            figures[f"share of {name}"] = shares[name], float(np.mean(world.truth == number))
        for name, (found, truth) in figures.items():
            inside[name] = inside.get(name, 0) + (found["low"] <= truth <= found["high"])
    assert len(inside) == 5
    assert min(inside.values()) >= 18, inside


def test_what_is_settled_and_what_is_missing(world, tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as store:
        (queue,) = draw(store, world, 6, names=("natural",), pool=0)
        keys = [item.key for item in queue.items]
        # Two agree; two of three; a tie; a tie decided; one label only; none.
        said = {"ann": "nnnrn-", "ben": "nrrn--", "cat": "-n----"}
        full = {"n": "natural", "r": "rendition"}
        for who, letters in said.items():
            found = {k: full[x] for k, x in zip(keys, letters, strict=True) if x != "-"}
            store.set_all(who, queue.draw, found)
        store.adjudicate("dan", queue.draw, keys[3], "ambiguous")
        (one,) = audit.read(store, [queue], min_annotators=2)
        assert one.domain == {keys[0]: "natural", keys[1]: "natural", keys[3]: "ambiguous"}
        assert (one.unlabelled, one.disputed, one.missing) == ([keys[4], keys[5]], [keys[2]], 3)
        (one,) = audit.read(store, [queue], min_annotators=1)
        assert one.domain[keys[4]] == "natural"
        assert one.missing == 2


def test_precision_is_of_what_is_settled(world, tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as store:
        queue, ambiguous = draw(store, world, 50, names=("natural", "ambiguous"), pool=0)
    keys = [item.key for item in queue.items]
    said = audit.Said(dict.fromkeys(keys[:38], "natural") | {keys[38]: "rendition"}, keys[39:], [])
    low, high = stats.wilson_interval(38, 39)
    expected = {"n": 39, "correct": 38, "precision": 38 / 39, "low": low, "high": high}
    expected |= {"claimed": 0.98, "drawn": 50, "truth": None}
    assert audit.precision(queue, said, 0.98) == expected
    nothing = audit.precision(queue, audit.Said({}, keys, []), 0.98)
    assert (nothing["precision"], nothing["low"], nothing["high"]) == (None, 0, 1)
    # Nothing is claimed of what no decider took.
    assert audit.precision(ambiguous, audit.Said({}, [], []), 0.98)["claimed"] is None
    assert audit.true_precision(queue, routing.TRUE_DOMAIN) == world.precision("natural")
    assert audit.true_precision(queue, "elsewhere") is None


def test_shares_of_a_pool_that_is_labelled_whole_are_exact(world, tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as store:
        (queue,) = draw(store, world, names=(), pool=3000)
    said = audit.Said({k: schema.DOMAINS[d] for k, d in queue.truth.items()}, [], [])
    shares, strata, _ = audit.pool_shares(queue, said)
    for number, name in enumerate(schema.DOMAINS):
        truth = np.mean(world.truth == number)
        for figure in ("value", "low", "high"):
            assert shares[name][figure] == pytest.approx(truth, abs=1e-12)
        assert sum(one[name] for one in strata.values()) == np.sum(world.truth == number)
    # One stratum that nobody looked at leaves no shares.
    some = {k: d for k, d in said.domain.items() if queue.groups[k] != "conflict"}
    shares, _, note = audit.pool_shares(queue, audit.Said(some, [], []))
    assert shares == {}
    assert "stratum conflict" in note


def test_shares_from_the_written_datasets(world, tmp_path):
    with labels.Store(tmp_path / "labels.sqlite") as store:
        queues = draw(store, world, 120, names=schema.DOMAINS, pool=0)
    said = [
        audit.Said({k: schema.DOMAINS[d] for k, d in queue.truth.items()}, [], [])
        for queue in queues
    ]
    shares, strata, note = audit.written_shares(queues, said)
    assert note == ""
    assert {name: one["records"] for name, one in strata.items()} == {
        name: len(world.written(name)) for name in schema.DOMAINS
    }
    assert sum(one["value"] for one in shares.values()) == pytest.approx(1)
    for number, name in enumerate(schema.DOMAINS):
        # Here the estimate by hand: each dataset's share, weighted by its size.
        by_hand = sum(
            strata[own]["records"] / 3000 * strata[own][name] / 120 for own in schema.DOMAINS
        )
        assert shares[name]["value"] == pytest.approx(by_hand)
        assert shares[name]["low"] <= np.mean(world.truth == number) <= shares[name]["high"]
    shares, _, note = audit.written_shares(queues[:2], said[:2])
    assert shares == {}
    assert "has not exactly one of ambiguous." in note


def measured(low, high, claimed=0.98, n=100):
    return {"low": low, "high": high, "claimed": claimed, "n": n}


def test_verdicts():
    assert audit_report.verdict(measured(0.98, 0.99)) == "proven"
    assert audit_report.verdict(measured(0.97, 0.98)) == "consistent"
    assert audit_report.verdict(measured(0.95, 0.979)) == "refuted"
    assert audit_report.verdict(measured(0.95, 0.979, claimed=None)) == "-"
    assert audit_report.verdict(measured(0, 1, n=0)) == "-"
