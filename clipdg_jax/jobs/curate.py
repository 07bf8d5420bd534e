"""Curation: a pool and a classifier in; natural and rendition datasets, clean test sets out.

With `config.list`, a list of keys or URLs in place of the classifier, and one dataset.

The workdir holds the scores of the pool (`domains.curation.table`) and of the test sets, the
selection, the report page and the release table; the datasets are under `config.out`. Every phase
goes on where a killed run stopped.
"""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from clipdg_jax import errors
from clipdg_jax.data import dataset, demo, engine, files, resolve, tokenizer, writing
from clipdg_jax.data import pool as pool_lib
from clipdg_jax.domains.curation import (
    clean,
    duplicates,
    listing,
    plan,
    release,
    report,
    routing,
    samples,
    scoring,
    selection,
)
from clipdg_jax.training import workdir

SCORES, TEST_SCORES, SELECTION = "scores", "test_scores", "selection.json"
RELEASE, HASHES = "release.parquet", "list.npy"


def run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Scores, selects, writes, cleans and reports; goes on where an earlier call was stopped.

    Raises:
      errors.UserError: a field, the pool, the classifier, the list or a test set is missing or
        wrong; no space left.
    """
    plan.check(config)
    if config.dry_run:
        print(plan.describe(config, directory))
        return
    if config.data.demo:
        demo.ensure(config.data.root, demo.DemoSpec(**config.data.demo.to_dict()))
    pool = resolve.resolve_pool(config.pool, config.data.root)
    dropped = duplicates.Duplicates.open(config.duplicates, pool.fingerprint)
    inputs = {"pool": pool.fingerprint, "duplicates": dropped.digest}
    if config.list:
        _check_list(config)
        inputs["list"] = files.sha256(pathlib.Path(config.list))
        with workdir.claim(directory, config, inputs) as claimed:
            if _told_complete(claimed):
                return
            _finish(claimed, _by_list(config, pool, dropped, claimed.path))
        return
    saved = scoring.Saved.at(config.classifier)
    test_sets = clean.resolve_sets(plan.plain(config.test_sets), config.data.root)
    inputs["classifier"] = saved.digest
    inputs |= {f"test_sets.{one.name}": one.source.fingerprint for one in test_sets}
    with workdir.claim(directory, config, inputs) as claimed:
        if _told_complete(claimed):
            return
        _finish(claimed, _by_classifier(config, pool, dropped, saved, test_sets, claimed.path))


def _check_list(config: ml_collections.ConfigDict) -> None:
    if not pathlib.Path(config.list).is_file():
        raise errors.UserError(
            f"config.list: {config.list} is no file; give one of keys or URLs (.txt, .csv, "
            ".parquet)"
        )


def _told_complete(claimed: workdir.Workdir) -> bool:
    if claimed.results is None:
        return False
    print(f"{claimed.path}: this run is complete\n{plan.text(claimed.results)}")
    return True


def _finish(claimed: workdir.Workdir, results: Mapping[str, Any] | None) -> None:
    if results is not None:
        claimed.finish(results)
        print(plan.text(results))
    # The runtime of several processes takes one that ends long before the others for dead.
    while not (claimed.path / "results.json").exists():
        time.sleep(1)


def _by_classifier(
    config: ml_collections.ConfigDict,
    pool: resolve.Pool,
    dropped: duplicates.Duplicates,
    saved: scoring.Saved,
    test_sets: Sequence[clean.TestSet],
    directory: pathlib.Path,
) -> dict[str, Any] | None:
    """The results; None on processes other than the first."""
    scored, scoring_counts = _score(config, pool, dropped, saved, directory)
    controls = plan.names(config, "controls")
    selected = _select(scored, controls, config.seed, directory)
    datasets = plan.names(config, "write")
    targets = {name: name for name in datasets}
    targets |= {selection.CONTROL + name: "" for name in controls}
    judge = routing.ByScores(scored, datasets, selected.drawn, config.seed)
    written = _write(
        config,
        pool,
        judge,
        targets,
        directory,
        {"classifier": saved.digest, "duplicates": dropped.digest, "seed": config.seed},
    )
    cleaned = {
        one.name: clean.clean(
            one,
            saved,
            directory / TEST_SCORES / one.name,
            plan.out(config),
            batch=config.batch_size,
            threads=config.data.threads,
            target_shard_bytes=config.target_shard_bytes,
            **_spread(config),
        )
        for one in test_sets
    }
    if written is None or jax.process_index() != 0:
        return None
    told = {name: one for name, one in cleaned.items() if one is not None}
    arguments = (scored, datasets, selected.drawn, config.seed)
    calibrated = saved.load().calibration
    decided = report.pool_counts(pool.name, selected)
    results: dict[str, Any] = {
        "job": "curate",
        "classifier": f"{saved.title} ({saved.directory})",
        "pool": decided,
        "scoring": scoring_counts,
        "datasets": _datasets(written),
        "composition": {
            "pool": report.composition(decided["decided"]),
            "test_sets": {name: report.composition(one["decided"]) for name, one in told.items()},
        },
        "clean": told,
        "suites": clean.write_suites(test_sets, told, plan.out(config)),
        "released": release.write(directory / RELEASE, *arguments),
    }
    truth = report.ground_truth(selected, datasets)
    if truth is not None:
        results["ground_truth"] = truth
    picks = samples.pick(*arguments, report.PICTURES)
    report.write(directory / report.PAGE, results, calibrated, selected, picks, written)
    return results


def _score(
    config: ml_collections.ConfigDict,
    pool: resolve.Pool,
    dropped: duplicates.Duplicates,
    saved: scoring.Saved,
    directory: pathlib.Path,
) -> tuple[selection.ScoredPool, dict[str, Any]]:
    """Scores this process's shards and waits for those of the others."""
    refused = [one for one in saved.load().calibration.deciders if one.refusal]
    if refused:
        raise errors.UserError(
            f"{saved.directory}: its {refused[0].domain} decider takes nothing "
            f"({refused[0].refusal}); fit a classifier whose deciders reach their target"
        )
    shards = pool.shards()
    scores = directory / SCORES
    scoring.score(
        shards,
        saved,
        scores,
        identity={"pool": pool.fingerprint},
        to_records=_to_records(config),
        batch=config.batch_size,
        threads=config.data.threads,
        **_spread(config),
    )
    engine.wait_for_reports(scores, len(shards), print)
    reports = [engine.read_report(scores, index) for index in range(len(shards))]
    waited, took = (
        sum(one["output"][name] for one in reports) for name in ("waited_s", "scored_s")
    )
    rows = sum(one["written"] for one in reports)
    told = {
        "waited_s": round(waited, 1),
        "scored_s": round(took, 1),
        "waiting_share": round(waited / max(waited + took, 1e-9), 4),
        "images_per_s": round(rows / max(waited + took, 1e-9), 1),
    }
    return selection.ScoredPool(scores, len(shards), dropped), told


def _select(
    scored: selection.ScoredPool, controls: Sequence[str], seed: int, directory: pathlib.Path
) -> selection.Selection:
    """Process 0 selects; the others wait for what it wrote."""
    path = directory / SELECTION
    if not path.exists() and jax.process_index() == 0:
        selected = selection.select(scored, controls, seed)
        files.write_json(path, selected.to_json())
    while not path.exists():
        time.sleep(1)
    return selection.Selection.from_json(json.loads(path.read_text(encoding="utf-8")))


def _by_list(
    config: ml_collections.ConfigDict,
    pool: resolve.Pool,
    dropped: duplicates.Duplicates,
    directory: pathlib.Path,
) -> dict[str, Any] | None:
    """The results; None on processes other than the first."""
    own = directory / f"{jax.process_index():05d}-{HASHES}"
    listed = listing.read(config.list, own)
    name = config.list_name
    judge = listing.ByList(listed, dropped, name, config.list_domain)
    written = _write(
        config,
        pool,
        judge,
        {name: config.list_domain},
        directory,
        {"list": files.sha256(listed.path), "duplicates": dropped.digest},
    )
    if written is None or jax.process_index() != 0:
        return None
    made = written[name]
    matched = listing.matched(listed, made)
    if not len(made):
        (directory / "config.json").unlink()  # So that the run may begin anew with a mended list.
        listing.withdraw(made, listed)
    return {
        "job": "curate",
        "pool": {"name": pool.name, "seen": made.manifest.seen},
        "datasets": _datasets(written),
        "list": {
            "entries": listed.entries,
            "repeated": listed.repeated,
            "matched": matched,
            "unmatched": listed.entries - matched,
        },
        "released": release.write_listed(directory / RELEASE, name, made),
    }


def _write(
    config: ml_collections.ConfigDict,
    pool: resolve.Pool,
    judge: routing.Judge,
    domains: Mapping[str, str],
    directory: pathlib.Path,
    identity: Mapping[str, Any],
) -> dict[str, dataset.Dataset] | None:
    """Writes all datasets, by name with their domains, in one pass over the pool."""
    tokens = tokenizer.get_tokenizer(config.data.vocab_size).hash
    classes, made_by = (
        (pool.classes, pool.tokenizer) if isinstance(pool, dataset.Dataset) else ((), None)
    )
    parent = {"name": pool.name, "fingerprint": pool.fingerprint}
    targets = {
        name: writing.Target(
            out=plan.out(config) / name,
            classes=classes,
            domain=domain,
            tokenizer=tokens,
            parents=(parent,),
        )
        for name, domain in domains.items()
    }
    route = routing.Route(
        judge,
        _to_records(config),
        pool_lib.Tokenise(config.data.vocab_size, made_by),
    )
    return writing.write_datasets(
        targets,
        routing.numbered(pool.shards()),
        route,
        work=directory,
        config={
            "job": "curate",
            "pool": pool.fingerprint,
            "tokenizer_vocab": config.data.vocab_size,
            "keep_uncaptioned": config.data.keep_uncaptioned,
            **identity,
        },
        target_shard_bytes=config.target_shard_bytes,
        say=print,
        **_spread(config),
    )


def _datasets(written: Mapping[str, dataset.Dataset]) -> dict[str, Any]:
    return {
        name: {
            "path": str(one.path),
            "records": one.manifest.records,
            "bytes": one.manifest.bytes,
            "dropped": dict(one.manifest.dropped),
        }
        for name, one in written.items()
    }


def _to_records(config: ml_collections.ConfigDict) -> pool_lib.ToRecords:
    return pool_lib.ToRecords(config.data.keep_uncaptioned)


def _spread(config: ml_collections.ConfigDict) -> scoring.Spread:
    return {
        "processes": config.processes,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
