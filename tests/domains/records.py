"""Labelled records in memory: solid colours with captions; and a context without an encoder."""

import dataclasses

import cv2
import ml_collections
import numpy as np

from clipdg_jax.data import schema
from clipdg_jax.domains import examples, inputs
from clipdg_jax.domains.methods import method


@dataclasses.dataclass(frozen=True)
class Records:
    """A `resolve.Source`."""

    records: tuple[schema.Record, ...]
    name: str = "records"
    classes: tuple[str, ...] = ()
    tokenizer: None = None
    fingerprint: str = "records"

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> schema.Record:
        return self.records[index]


def solid(colour) -> bytes:
    """A picture of one colour (red, green, blue)."""
    return cv2.imencode(".png", np.full((8, 8, 3), colour[::-1], np.uint8))[1].tobytes()


def labelled(domains, captions=None, images=None) -> examples.Examples:
    """Records with these domains' numbers; no caption and no picture unless given."""
    n = len(domains)
    made = tuple(
        schema.Record(f"r/{i}", images[i] if images else b"", captions[i] if captions else "")
        for i in range(n)
    )
    return examples.Examples(
        (Records(made),),
        np.zeros(n, np.int32),
        np.arange(n),
        np.asarray(domains, np.int32),
        tuple(record.key for record in made),
    )


def of(captions=None, images=None) -> inputs.Inputs:
    """A batch of such records."""
    (batch,) = labelled([0] * len(captions or images), captions, images).batches(10_000)
    return batch


def context(config, encoder=None, workdir=None, sections=None) -> method.Context:
    """What a method is given that needs no devices."""
    return method.Context(
        config=ml_collections.ConfigDict(config),
        sections=sections or {},
        encoder=encoder,
        mesh=None,
        seed=0,
        workdir=workdir,
    )
