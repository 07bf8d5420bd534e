"""Audits what curation wrote: draws records to be labelled, then reports how pure the datasets are.

The draws go into a label store. As long as they are not labelled, `state.json` in the workdir says
what is missing and by which commands it is labelled, and there is no `results.json`.
"""

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from clipdg_jax import errors
from clipdg_jax.data import dataset, files, resolve, schema, shuffle
from clipdg_jax.domains import annotators, labels
from clipdg_jax.domains.curation import (
    audit,
    audit_draws,
    audit_report,
    duplicates,
    routing,
    selection,
)
from clipdg_jax.evaluation import stats
from clipdg_jax.training import workdir

STATE, PARTIAL = "state.json", "partial.json"
WAITING = "waiting for labels"
# Labels of the simulated annotators, in the workdir.
SIMULATED = "labels.sqlite"


def run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Draws, or, when all is labelled, reports; the same command again goes on.

    Raises:
      errors.UserError: a field, a dataset, the scores or the labels are missing or wrong.
    """
    if config.dry_run:
        print(describe(config))
        return
    if jax.process_count() > 1:
        raise errors.UserError("--multihost: one process audits; leave it out")
    sources = _resolve(config)
    pool, scored = _pool(config)
    inputs = {name: source.fingerprint for name, source in sources.items()}
    if pool is not None:
        inputs[audit_draws.POOL] = pool.fingerprint
    if scored is not None:
        inputs["scores"] = audit_draws.fingerprint(scored)
    with workdir.claim(directory, _identity(config), inputs) as claimed:
        if claimed.results is not None:
            print(f"{directory}: this run is complete\n{audit_report.text(claimed.results)}")
            return
        simulate = config.labels.simulate
        path = claimed.path / SIMULATED if simulate else pathlib.Path(config.labels.path)
        with labels.Store(path) as store:
            queues = [
                audit_draws.of_dataset(
                    store, name, source, config.n, config.seed, routing.TRUE_DOMAIN
                )
                for name, source in sources.items()
            ]
            drawable = audit_draws.frame(scored) if scored is not None else None
            if drawable is not None:
                assert isinstance(pool, dataset.Dataset)
                queues.append(
                    audit_draws.of_pool(store, pool, drawable, config.pool.n, config.seed)
                )
            if simulate:
                _simulate(store, queues, config)
            said = audit.read(store, queues, config.labels.min_annotators)
        missing = sum(one.missing for one in said)
        if missing:
            state = _waiting(config, path, queues, said)
            files.write_json(claimed.path / STATE, state)
            print(_told(state))
            if not config.allow_partial:
                return
        results = _results(config, queues, said, pool, drawable)
        audit_report.write(claimed.path, results, "Audit" + " so far" * bool(missing))
        if missing:
            files.write_json(claimed.path / PARTIAL, results)
        else:
            claimed.finish(results)
            for name in (STATE, PARTIAL):
                (claimed.path / name).unlink(missing_ok=True)
        print(audit_report.text(results))


def describe(config: ml_collections.ConfigDict) -> str:
    """The dry run's report; needs no data."""
    names, claimed = _names(config), config.claimed
    low, high = stats.wilson_interval(round(claimed * config.n), config.n)
    lines = [
        f"{config.n} records each of {', '.join(names)}",
        f"where a precision of {claimed:g} is found, the 95 % interval is {low:.4f} to {high:.4f}",
    ]
    if config.pool.name:
        lines.append(f"{config.pool.n} records of {config.pool.name}, drawn by decision")
    total = len(names) * config.n + (config.pool.n if config.pool.name else 0)
    if config.labels.simulate:
        who = f"{config.labels.simulate.annotators} simulated annotators"
    else:
        who = f"{config.labels.min_annotators} or more annotators, into {config.labels.path}"
    lines.append(f"in all {total} records to label, each by {who}")
    return "\n".join(lines)


def _names(config: ml_collections.ConfigDict) -> list[str]:
    names = [name for name in map(str.strip, config.datasets.split(",")) if name]
    if not names:
        raise errors.UserError("config.datasets: is empty; name the datasets that were written")
    if config.pool.name and audit_draws.POOL in names:
        raise errors.UserError(
            f"config.datasets: {audit_draws.POOL!r} is what the pool is called here; give the "
            f"dataset as ./{audit_draws.POOL}"
        )
    return list(dict.fromkeys(names))


def _resolve(config: ml_collections.ConfigDict) -> dict[str, resolve.Source]:
    found: dict[str, resolve.Source] = {}
    for name in _names(config):
        try:
            found[name] = resolve.resolve(name, config.data.root)
        except errors.UserError as error:
            raise errors.UserError(
                f"config.datasets: {error} (curation writes datasets: `python -m clipdg_jax.main "
                "--config=configs/curate.py`)"
            ) from error
    return found


def _pool(
    config: ml_collections.ConfigDict,
) -> tuple[resolve.Pool | None, selection.ScoredPool | None]:
    """The pool, if its shares are asked for; and its scores, if it can be read at random."""
    if not config.pool.name:
        return None, None
    pool = resolve.resolve_pool(config.pool.name, config.data.root)
    if not isinstance(pool, dataset.Dataset):
        return pool, None
    dropped = duplicates.Duplicates.open(config.pool.duplicates, pool.fingerprint)
    scores = pathlib.Path(config.pool.scores)
    return pool, selection.ScoredPool(scores, len(pool.shards()), dropped)


def _identity(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config without what does not change the results of a complete audit."""
    own = config.copy_and_resolve_references()
    with own.unlocked():
        del own.allow_partial
    return own


def _simulate(
    store: labels.Store, queues: Sequence[audit.Queue], config: ml_collections.ConfigDict
) -> None:
    """Labels all queues as people might, with errors at a known rate."""
    for queue in queues:
        unknown = [key for key, truth in queue.truth.items() if truth < 0]
        if unknown:
            raise errors.UserError(
                f"config.labels.simulate: the true domain of {unknown[0]} of {queue.name} is "
                "unknown; set it to nothing and label the draws"
            )
        annotators.label(
            store,
            queue.draw,
            queue.truth,
            annotators=config.labels.simulate.annotators,
            error=config.labels.simulate.error,
            seed=shuffle.seed_of("audit", queue.name, config.seed),
        )


def _waiting(
    config: ml_collections.ConfigDict,
    path: pathlib.Path,
    queues: Sequence[audit.Queue],
    said: Sequence[audit.Said],
) -> dict[str, Any]:
    """What is missing, and the commands that show it to annotators."""
    missing = {}
    for queue, one in zip(queues, said, strict=True):
        name = config.pool.name if queue.name == audit_draws.POOL else queue.name
        flags = {"data_root": config.data.root, "dataset": name, "labels": path}
        given = " ".join(shlex.quote(f"--{flag}={value}") for flag, value in flags.items())
        command = f"python -m tools.label {given} --annotator=$USER"
        commands = []
        if one.unlabelled:
            commands.append(f"{command} --draw={queue.draw}")
        if one.disputed:
            commands.append(f"{command} --adjudicate")
        if commands:
            missing[queue.name] = {
                "drawn": len(queue.items),
                "unlabelled": len(one.unlabelled),
                "disputed": len(one.disputed),
                "commands": commands,
            }
    return {
        "state": WAITING,
        "min_annotators": config.labels.min_annotators,
        "missing": missing,
    }


def _told(state: Mapping[str, Any]) -> str:
    who = f"{state['min_annotators']} or more annotators, each under a name of their own"
    lines = [f"{WAITING}, by {who}; then run the same command again"]
    for name, one in state["missing"].items():
        what = [f"{one['unlabelled']} of {one['drawn']} records to label"] * bool(one["unlabelled"])
        what += [f"{one['disputed']} to decide"] * bool(one["disputed"])
        lines += [f"{name}: {', '.join(what)}", *(f"    {each}" for each in one["commands"])]
    return "\n".join(lines)


def _results(
    config: ml_collections.ConfigDict,
    queues: Sequence[audit.Queue],
    said: Sequence[audit.Said],
    pool: resolve.Pool | None,
    drawable: audit_draws.Frame | None,
) -> dict[str, Any]:
    written = [
        (queue, one)
        for queue, one in zip(queues, said, strict=True)
        if queue.name != audit_draws.POOL
    ]
    measured = {}
    for queue, one in written:
        measured[queue.name] = audit.precision(queue, one, config.claimed)
        measured[queue.name]["truth"] = audit.true_precision(queue, routing.TRUE_DOMAIN)
    shares: dict[str, Any] = {}
    strata: dict[str, Any] = {}
    notes = []
    if pool is not None:
        if drawable is not None:
            shares, strata, note = audit.pool_shares(queues[-1], said[-1])
        else:
            shares, strata, note = audit.written_shares(*zip(*written, strict=True))
        notes += [note] if note else []
    if shares and drawable is not None and drawable.truth is not None:
        for number, domain in enumerate(schema.DOMAINS):
            shares[domain]["truth"] = int(drawable.truth[number]) / len(drawable)
    missing = sum(one.missing for one in said)
    if missing:
        notes.append(f"Of {sum(len(q.items) for q in queues)} records, {missing} are missing.")
    return {
        "job": "audit",
        "datasets": measured,
        "shares": shares,
        "strata": strata,
        "missing": missing,
        "notes": notes,
    }
