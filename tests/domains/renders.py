"""Labelled pictures of the demo world in memory, and what a learning method is given with them."""

import dataclasses
import functools

import cv2
import jax
import ml_collections
import numpy as np

from clipdg_jax.data import demo, schema
from clipdg_jax.domains import encoder, examples
from clipdg_jax.domains.methods import method
from clipdg_jax.models import config as model_config
from clipdg_jax.models import model as model_lib
from clipdg_jax.training import sharding

STYLES = ("natural", "sketch", "ambiguous")
ARCHITECTURE = {
    "name": "tiny-plain",
    "embed_dim": 32,
    "vision": {"width": 32, "heads": 2, "layers": 1, "patch_size": 8, "pool": "avg"},
}
OPTIM = {
    "name": "adamw",
    "schedule": "cosine",
    "lr": 3e-3,
    "warmup": 4,
    "beta1": 0.9,
    "beta2": 0.98,
    "eps": 1e-6,
    "weight_decay": 0.05,
    "clip": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A `resolve.Source` of rendered pictures."""

    records: tuple[schema.Record, ...]
    name: str = "pictures"
    classes: tuple[str, ...] = ()
    tokenizer: None = None
    fingerprint: str = "pictures"

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> schema.Record:
        return self.records[index]


def labelled(counts: tuple[int, int, int], first: int = 0) -> examples.Examples:
    """Pictures `first`, `first` + 1, ... of each domain, as many as `counts` says, in turn."""
    world = demo.World(size=40, cue_correlation=0.0)
    records, domains = [], []
    for number in range(max(counts)):
        for domain, style in enumerate(STYLES):
            if number >= counts[domain]:
                continue
            image = demo.render(world, style, 0, first + number).image
            data = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
            key = f"{style}/{first + number}"
            records.append(schema.Record(key=key, image=data, domain=schema.DOMAINS[domain]))
            domains.append(domain)
    n = len(records)
    return examples.Examples(
        (Pictures(tuple(records)),),
        np.zeros(n, np.int32),
        np.arange(n),
        np.array(domains, np.int32),
        tuple(record.key for record in records),
    )


@functools.cache
def tower() -> tuple[model_lib.Model, dict[str, np.ndarray]]:
    """A model and values for its image tower; drawn here, which is faster than to compile it."""
    rng = np.random.default_rng(0)
    model = model_lib.Model(model_config.from_config(ARCHITECTURE))
    params = {}
    for name, leaf in model.shapes().items():
        if not name.startswith(model_lib.IMAGE_TOWER):
            continue
        if len(leaf.shape) > 1:
            draw = rng.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        else:
            draw = np.full(leaf.shape, float(name.endswith("weight")))
        params[name] = draw.astype(np.float32)
    return model, params


def mesh(devices: int) -> jax.sharding.Mesh:
    """The first few devices."""
    return sharding.make_mesh(devices=jax.devices()[:devices])


def context(config, workdir, *, devices: int = 1) -> method.Context:
    """What a method is given: `config`, and a fresh encoder on this many devices."""
    devices_mesh = mesh(devices)
    workdir.mkdir(parents=True, exist_ok=True)
    model, params = tower()
    return method.Context(
        config=ml_collections.ConfigDict(config),
        sections={},
        encoder=encoder.Encoder(model, encoder.place(params, devices_mesh), devices_mesh),
        mesh=devices_mesh,
        seed=0,
        workdir=workdir,
        threads=1,
    )
