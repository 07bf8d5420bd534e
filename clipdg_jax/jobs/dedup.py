"""Deduplication: a pool in, a table of what is to be dropped in favour of what out.

The workdir holds the signatures of all records, shard by shard (`domains.dedup.signatures`), what
the search has in work (`domains.dedup.search`), and at the end `duplicates.parquet` and the counts.
Signing is shared between hosts, and an encoder runs on all devices of each; the rest, which is a
matter of minutes where signing takes a day, is the first host's, on its first device.
"""

import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from clipdg_jax import errors
from clipdg_jax.data import demo, engine, resolve
from clipdg_jax.domains import encoder as encoder_lib
from clipdg_jax.domains.dedup import (
    banding,
    buckets,
    clusters,
    descriptor,
    outcome,
    search,
    signatures,
    similar,
)
from clipdg_jax.domains.dedup.plan import Plan
from clipdg_jax.models import config as model_config
from clipdg_jax.training import checkpoints, sharding, workdir

# Records that a dry run reckons with where there is no demo: LAION-400M's.
DRY_RUN_RECORDS = 400_000_000
# Of a record in the signatures: key, sums, hashes and sizes; about, as they are compressed.
_SIGNATURE_BYTES = 100


def run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Finds the duplicates; goes on where an earlier call was stopped.

    Raises:
      errors.UserError: a field, a data set or the encoder is missing or wrong; a bucket does not
        fit in `ram_gib`; no space left.
    """
    check(config)
    if config.dry_run:
        print(describe(config))
        return
    if config.data.demo:
        demo.ensure(config.data.root, demo.DemoSpec(**config.data.demo.to_dict()))
    pools = _pools(config)
    with workdir.claim(directory, config, _fingerprints(config, pools)) as claimed:
        if claimed.results is not None:
            if jax.process_index() == 0:
                shutil.rmtree(directory / "buckets", ignore_errors=True)  # If it was killed before.
                print(f"{directory}: this run is complete\n{text(claimed.results)}")
            return
        signed = _sign(config, pools, claimed.path / "signatures")
        if jax.process_index() != 0:
            while not (claimed.path / "results.json").exists():  # The first host goes on alone.
                time.sleep(1)
            return
        acted, told = _search(config, signed, claimed.path / "buckets")
        outcome.write_table(
            claimed.path / outcome.TABLE, acted, signed, next(reversed(pools.values())).fingerprint
        )
        results = {
            "job": "dedup",
            "mode": config.mode,
            **outcome.counts(acted, signed),
            **told,
        }
        truth = outcome.ground_truth(acted, signed)
        if truth is not None:
            results["ground_truth"] = truth
        claimed.finish(results)
        shutil.rmtree(claimed.path / "buckets", ignore_errors=True)
        print(f"{text(results)}\n{claimed.path / outcome.TABLE}")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError, naming the field that is out of range."""
    if config.mode not in search.MODES:
        raise errors.UserError(
            f"config.mode: {config.mode!r} is unknown; one of {', '.join(search.MODES)}"
        )
    search.Memory(config.ram_gib).check()
    banding.check_radius(config.perceptual.radius, "config.perceptual.radius")
    plan(config, 1).check()
    for section, field, low, high in (
        ("embedding", "cosine", 0, 1),
        ("cascade", "cosine", 0, 1),
        ("cascade", "distance", 0, 64),
        ("cascade", "correlation", -1, 1),
    ):
        value = config[section][field]
        if not low <= value <= high:
            raise errors.UserError(
                f"config.{section}.{field}: is {value}; it lies between {low} and {high}"
            )


def plan(config: ml_collections.ConfigDict, records: int) -> Plan:
    """The buckets for so many records."""
    return Plan(records, seed=config.seed, **config.buckets.to_dict())


def describe(config: ml_collections.ConfigDict) -> str:
    """The dry run's report; needs no data."""
    records = config.data.demo.pool if config.data.demo else DRY_RUN_RECORDS
    if config.mode in ("exact", "perceptual"):
        each = f"{records * _SIGNATURE_BYTES / 2**30:.3g} GiB of signatures on disk"
        if config.mode == "perceptual":
            radius = config.perceptual.radius
            count = (1 + config.perceptual.mirrored) * records
            tables = banding.tables(count, radius)
            bits = min(int(mask).bit_count() for mask in tables)
            each += f"; {len(tables)} tables by {bits} or more bits for a radius of {radius}"
        return f"{config.mode}, {records:,} records: {each}"
    width = descriptor.WIDTH
    if config.encoder.checkpoint:
        model = {**config.encoder.model.to_dict(), "dtype": config.dtype}
        width = model_config.from_config(model).embed_dim
    cascade = config.mode == "cascade"
    entry = buckets.entry(width, cascade)
    signature = _SIGNATURE_BYTES + 2 * width + (signatures.PICTURE_BYTES if cascade else 0)
    return plan(config, records).report(
        width, entry.itemsize, signature, similar.bytes_per_entry(entry)
    )


def text(results: dict[str, Any]) -> str:
    """The counts as lines."""
    by_how = ", ".join(f"{n:,} {how}" for how, n in results["by_how"].items()) or "none"
    records, duplicates, left = (results[name] for name in ("records", "duplicates", "left"))
    lines = [f"{records:,} records, {duplicates:,} duplicates ({by_how}), {left:,} left"]
    if results["not_compared"]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in results["not_compared"].items())
        lines.append(f"not compared: {reasons}")
    if results["references"]:
        kept = ", ".join(f"{n:,} of {name}" for name, n in results["in_favour_of"].items())
        lines.append(f"in favour of: {kept}")
    if "ground_truth" in results:
        truth = results["ground_truth"].items()
        lines.append("truth: " + ", ".join(f"{name} {value:.4f}" for name, value in truth))
    return "\n".join(lines)


def _pools(config: ml_collections.ConfigDict) -> dict[str, resolve.Pool]:
    """The references by name, in order, and the pool, which comes last."""
    names = [name for name in map(str.strip, config.against.split(",")) if name]
    if config.pool in names:
        raise errors.UserError(
            f"config.against: {config.pool} is config.pool itself; name other data sets"
        )
    names = [*dict.fromkeys(names), config.pool]
    return {name: resolve.resolve_pool(name, config.data.root) for name in names}


def _fingerprints(
    config: ml_collections.ConfigDict, pools: dict[str, resolve.Pool]
) -> dict[str, str]:
    inputs = {name: pool.fingerprint for name, pool in pools.items()}
    if config.mode in ("embedding", "cascade") and config.encoder.checkpoint:
        saved = checkpoints.saved(checkpoints.directory_of(config.encoder.checkpoint))
        inputs["encoder"] = saved[max(saved)]
    return inputs


def _sign(
    config: ml_collections.ConfigDict, pools: dict[str, resolve.Pool], work: pathlib.Path
) -> signatures.Signatures:
    """Signs what is this host's and not signed yet, and waits for the others'."""
    members: list[signatures.Member] = []
    sources: list[engine.InputShard] = []
    for name, pool in pools.items():
        own: Sequence[engine.InputShard] = pool.shards()
        members.append(signatures.Member(name, len(sources), len(own)))
        sources += own
    embed = config.mode in ("embedding", "cascade")
    encoder = None
    if embed and config.encoder.checkpoint:
        mesh = sharding.make_mesh(devices=jax.local_devices())
        encoder = encoder_lib.from_checkpoint(
            config.encoder.checkpoint, config.encoder.model.to_dict(), config.dtype, mesh
        )
    signatures.sign(
        sources,
        work,
        signatures.Sign(embed, encoder, config.data.threads or os.cpu_count() or 1),
        thumbnails=config.mode == "cascade",
        processes=config.processes,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    engine.wait_for_reports(work, len(sources), print)
    return signatures.Signatures(work, members)


def _search(
    config: ml_collections.ConfigDict, signed: signatures.Signatures, work: pathlib.Path
) -> tuple[clusters.Edges, dict[str, Any]]:
    """What is dropped in favour of what, and what to tell of how it was found."""
    memory = search.Memory(config.ram_gib)
    same, best = search.by_content(signed, memory)
    if config.mode == "exact":
        return same, {}
    if config.mode == "perceptual":
        given = config.perceptual
        acted = search.by_hash(signed, best, given.radius, given.mirrored, memory)
        return clusters.follow(same, acted), {}
    if config.mode == "embedding":
        rule = similar.Rule(clusters.EMBEDDING, config.embedding.cosine)
    else:
        rule = similar.Rule(clusters.CASCADE, **config.cascade.to_dict())
    spread = plan(config, int(best.sum()))
    acted, layout = search.by_embedding(signed, best, rule, spread, memory, work)
    sizes = layout.sizes()
    told = {
        "buckets": {"count": len(sizes), "largest": int(sizes.max()), "mean": float(sizes.mean())},
        "encoder": config.encoder.checkpoint or "none: thumbnails' frequencies",
    }
    return clusters.follow(same, acted), told
