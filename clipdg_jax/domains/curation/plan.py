"""What a curation's config asks for, checked and told before data is touched; and its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from clipdg_jax.data import dataset, resolve, schema, tars
from clipdg_jax.domains import classifier
from clipdg_jax.domains.curation import selection
from clipdg_jax.errors import UserError
from clipdg_jax.evaluation import tables


def names(config: ml_collections.ConfigDict, field: str) -> tuple[str, ...]:
    """The domains that `write` or `controls` names, in the order of `schema.DOMAINS`."""
    given = [name for name in map(str.strip, config[field].split(",")) if name]
    for name in given:
        if name not in schema.DOMAINS:
            raise UserError(
                f"config.{field}: {name!r} is unknown; name any of {', '.join(schema.DOMAINS)}"
            )
    return tuple(name for name in schema.DOMAINS if name in given)


def out(config: ml_collections.ConfigDict) -> Path:
    """Where the datasets go."""
    return Path(config.out or config.data.root)


def plain(value: Any) -> Any:
    """A config's section as a dict, anything else as it is."""
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for fields that are wrong or do not go together."""
    if not names(config, "write") and not config.list:
        raise UserError("config.write: is empty; name natural, rendition or ambiguous")
    names(config, "controls")
    for field in ("batch_size", "target_shard_bytes"):
        if config[field] < 1:
            raise UserError(f"config.{field}: is {config[field]}; must be 1 or more")
    if config.list:
        if plain(config.test_sets) or config.controls:
            field = "controls" if config.controls else "test_sets"
            raise UserError(
                f"config.{field}: needs a classifier, but config.list takes its place; leave one "
                "of them empty"
            )
        if not config.list_name:
            raise UserError("config.list_name: is empty; name the dataset to write")
        if config.list_domain not in ("", *schema.DOMAINS):
            raise UserError(
                f"config.list_domain: {config.list_domain!r} is unknown; one of "
                f"{', '.join(schema.DOMAINS)}, or nothing"
            )
    elif not config.classifier:
        raise UserError(
            "config.classifier: is empty; name the directory of a saved classifier, or a list of "
            "keys or URLs in config.list"
        )


def describe(config: ml_collections.ConfigDict, directory: Path) -> str:
    """The dry run's report; tells of the pool where it is there, and needs none."""
    place = out(config)
    written = [config.list_name] if config.list else list(names(config, "write"))
    if not config.list:
        written += [selection.CONTROL + name for name in names(config, "controls")]
    rows = [("pool", _pool(config))]
    if config.duplicates:
        rows.append(("duplicates", _there(config.duplicates)))
    if config.list:
        rows.append(("list", _there(config.list)))
        phases = ["look up every key or URL of the pool in the list, without decoding an image"]
    else:
        is_saved = classifier.is_saved(Path(config.classifier))
        rows.append(("classifier", f"{config.classifier}{'' if is_saved else ' (not there yet)'}"))
        phases = [
            f"score every image of the pool, {config.batch_size} at a time -> {directory}/scores",
            "count the decisions and draw the controls -> selection.json",
        ]
    phases.append(f"write {', '.join(written)} in one pass over the pool -> {place}")
    if plain(config.test_sets):
        phases.append(f"score and clean {_test_sets(config)} -> {place}/clean")
    told = "release.parquet" if config.list else "release.parquet, report.html"
    phases.append(f"tell of it -> {directory}/{told}, results.json")
    rows += [
        ("processes", f"{config.processes} on each host"),
        ("shards of", f"{config.target_shard_bytes:,} bytes"),
        ("vocabulary", f"{config.data.vocab_size:,}"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    return "\n".join([*lines, *(f"{n}. {phase}" for n, phase in enumerate(phases, 1))])


def _pool(config: ml_collections.ConfigDict) -> str:
    try:
        found = resolve.resolve_pool(config.pool, config.data.root)
    except UserError:
        return f"{config.pool} (not there yet)"
    size, shards = "", len(found.shards())
    if isinstance(found, dataset.Dataset):
        size, total = f"{len(found):,} records, ", found.manifest.bytes
    else:
        assert isinstance(found, tars.TarPool)
        total = sum(Path(tar.path).stat().st_size for tar in found.tars)
    return f"{config.pool}: {size}{total:,} bytes in {shards:,} shards"


def _there(path: str) -> str:
    return path if Path(path).exists() else f"{path} (not there yet)"


def _test_sets(config: ml_collections.ConfigDict) -> str:
    named = plain(config.test_sets)
    return ", ".join(named) if isinstance(named, Mapping) else named


def text(results: Mapping[str, Any]) -> str:
    """A run's results for a terminal."""
    pool, lines = results["pool"], []
    rows = [
        (name, f"{one['records']:,}", f"{sum(one['dropped'].values()):,}", f"{one['bytes']:,}")
        for name, one in results["datasets"].items()
    ]
    rows += [
        (one["dataset"], f"{one['records']:,}", f"{sum(one['dropped'].values()):,}", "")
        for one in results.get("clean", {}).values()
    ]
    lines.append(f"{pool['name']}: {pool['seen']:,} items")
    if "decided" in pool:
        told = ", ".join(f"{n:,} {name}" for name, n in pool["decided"].items())
        unscored = sum(pool["unscored"].values())
        lines.append(f"{told}; {pool['duplicates']:,} duplicates; {unscored:,} without a score")
    if "list" in results:
        one = results["list"]
        lines.append(
            f"{one['matched']:,} of {one['entries']:,} entries matched, {one['unmatched']:,} did "
            "not"
        )
    lines.append(tables.aligned(("dataset", "records", "left out", "bytes"), rows))
    for name, one in results.get("ground_truth", {}).items():
        shown = ", ".join(
            f"{what} {'-' if value is None else f'{100 * value:.2f} %'}"
            for what, value in one.items()
        )
        lines.append(f"against the truth, {name}: {shown}")
    return "\n".join(lines)
