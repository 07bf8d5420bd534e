"""Datasets on disk and a fitted classifier that take no time: solid colours with captions."""

import dataclasses

import numpy as np

from clipdg_jax.data import dataset, engine, schema, writing
from clipdg_jax.domains import calibration, classifier, scores
from clipdg_jax.domains.methods import keywords
from tests.domains import records

CAPTIONS = ("a photo", "a sketch", "a poster")


def write(path, count=30, *, domains=True, name=None, damaged=()):
    """Record i is of domain i % 3, which its caption names; those `damaged` are no images."""

    def make(i):
        image = b"broken" if i in damaged else records.solid((i * 7 % 256, 80, 9))
        domain = schema.DOMAINS[i % 3] if domains else ""
        return schema.Record(f"r/{i:03d}", image, CAPTIONS[i % 3], domain=domain)

    made = writing.write_dataset(
        path, engine.index_shards(count, 10), engine.Each(make), config={"tool": "a test"}
    )
    if name:
        manifest = made.manifest
        dataclasses.replace(manifest, name=name).save(path)
        made = dataset.open_dataset(path)
    return made


def fitted(copies=40):
    """A method that is right on such captions."""
    domains = [0, 1, 2] * copies
    return keywords.Keywords.fit(
        records.labelled(domains, [CAPTIONS[d] for d in domains]),
        records.labelled([]),
        records.context({**keywords.WORDS, "learn_words": 0, "l2": 1e-2}),
    )


def saved(path, **provenance):
    """A saved classifier of it, and itself."""
    method = fitted()
    domains = np.arange(60, dtype=np.int32) % 3
    told = records.labelled(domains, [CAPTIONS[d] for d in domains])
    scored = scores.of(method, told)
    calibrated = calibration.calibrate(
        scored.probability, scored.domain, target=0.9, rule="point", min_support=5
    )
    made = classifier.Classifier("keywords", method, calibrated, provenance)
    made.save(path)
    return made
