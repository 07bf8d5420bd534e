"""Runs that were never trained: workdirs with results drawn from a known law."""

import json
import pathlib

import numpy as np
import scipy.special
import scipy.stats

from clipdg_jax.data import mixture
from clipdg_jax.evaluation import predictions

SETS = {"natural": ("natural", 800), "sketch": ("rendition", 400), "clipart": ("rendition", 400)}
CLASSES = tuple(f"class{i}" for i in range(10))
COMPOSITION = {"natural": (1.0, 0.0), "rendition": (0.0, 1.0), "pool": (0.6, 0.2)}
# a, b, k of `study.law`, by domain.
TRUTH = {"natural": (-6.0, 0.9, 0.15), "rendition": (-5.5, 0.85, 0.02)}


def accuracy(natural: float, rendition: float, domain: str, noise: float = 0.0) -> float:
    """What the law says, with noise on the logit."""
    own, other = (natural, rendition) if domain == "natural" else (rendition, natural)
    a, b, k = TRUTH[domain]
    return float(scipy.special.expit(a + b * np.log(own + k * other) + noise))


def write_run(
    root: pathlib.Path,
    mix: str,
    seed: int,
    *,
    sets=SETS,
    noise: float = 0.05,
    with_predictions: bool = True,
    examples: int = 64_000,
    **fields,
) -> pathlib.Path:
    """A finished run of this mix and seed; `fields` are identity fields of its config."""
    path = root / f"mix-{mix}-seed{seed}"
    path.mkdir(parents=True)
    parsed = mixture.parse_mix(mix)
    counts = [
        sum(float(v) * COMPOSITION[n][column] for n, v in zip(parsed.names, parsed.values))
        for column in (0, 1)
    ]
    rng = np.random.default_rng(abs(hash_of(mix)) + seed)
    steps, suite, items = examples // 64, {}, []
    for number, (name, (domain, images)) in enumerate(sets.items()):
        right = answers(accuracy(*counts, domain, noise * rng.normal()), images, number, rng)
        labels = np.arange(images) % len(CLASSES)
        answered = predictions.Predictions(
            domain=domain,
            classes=CLASSES,
            evaluated=np.ones(len(CLASSES), bool),
            index=np.arange(images),
            label=labels,
            prediction=np.where(right, labels, (labels + 1) % len(CLASSES)),
            probability=np.full(images, 0.5, np.float32),
            in_top5=right,
            invalid=0,
            unlabelled=0,
        )
        suite[name] = answered.measures()
        items.append(("demo", name, answered, [f"{name}/{i:05d}" for i in range(images)]))
    if with_predictions:
        predictions.write(path / f"predictions-{steps}.parquet", items)
    rows = [{"step": s, "loss": 4 - 2 * s / steps} for s in range(steps // 10, steps, steps // 10)]
    for step, share in ((steps // 2, 0.8), (steps, 1.0)):
        measured = {f"zero_shot/demo/{n}": share * one["top1"] for n, one in suite.items()}
        rows.append({"step": step, **measured})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    identity = {"job": "pretrain", "data.mix": mix, "seed": seed, "examples": examples, **fields}
    (path / "config.json").write_text(json.dumps({"identity": identity, "operational": {}}))
    results = {
        "job": "pretrain",
        "steps": steps,
        "examples": examples,
        "zero_shot": {"demo": suite},
    }
    (path / "results.json").write_text(json.dumps(results))
    return path


def answers(share: float, images: int, test_set: int, rng: np.random.Generator) -> np.ndarray:
    """Right or wrong for each image, so many of them right; models err on much the same images."""
    difficulty = np.random.default_rng(test_set).normal(size=images)
    own = np.sqrt(0.6) * difficulty + np.sqrt(0.4) * rng.normal(size=images)
    return own < scipy.stats.norm.ppf(share)


def hash_of(mix: str) -> int:
    """The same in every process."""
    return sum(ord(c) * 31**i for i, c in enumerate(mix)) % 2**31


RATIOS = ("2k,0k", "1.75k,0.25k", "1.5k,0.5k", "1k,1k", "0.5k,1.5k", "0.25k,1.75k", "0k,2k")
MIXES = (
    *("natural={},rendition={}".format(*ratio.split(",")) for ratio in RATIOS),
    *("pool=2k", "pool=1k", "pool=0.5k", "pool=0.25k"),
    *("natural=1k", "natural=0.5k"),
)


def write_sweep(root: pathlib.Path, seeds=(0, 1, 2), mixes=MIXES, **options) -> pathlib.Path:
    """A sweep's workdir with all its runs finished."""
    cells = {}
    for seed in seeds:
        for mix in mixes:
            path = write_run(root, mix, seed, **options)
            cells[path.name] = {"config": f"configs/mix.py:{mix}", "fields": [], "identity": "x"}
    (root / "sweep.json").write_text(json.dumps({"cells": cells}))
    return root
