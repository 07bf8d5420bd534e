"""Finds the duplicates in a pool, and what of its test sets a pool holds.

    python -m clipdg_jax.main --config=configs/dedup.py                  # the demo pool, cascade
    python -m clipdg_jax.main --config=configs/dedup.py:perceptual       # another mode
    python -m clipdg_jax.main --config=configs/dedup.py --config.against=test/natural
    python -m clipdg_jax.main --config=configs/dedup.py:paper --config.dry_run=True

The argument is a mode, on the demo pool, or a preset.

Modes, each after files of equal content:
  exact       nothing more.
  perceptual  perceptual hashes (pHash), also of the mirror image, within a Hamming radius.
  embedding   cosine of the embeddings, within buckets of a k-means.
  cascade     the same, at a lower cosine, but a duplicate only if hash and pixels confirm it.

Presets:
  demo   the demo pool, a tenth of which are copies; 15 seconds on two cores, and
         over a minute to make it.
  paper  LAION-400M in tars with the embeddings of a ViT-L/14; signing is limited by the encoder, a
         day and a half on 8 devices at 2 500 images/s each way, and the rest takes an hour or two.

Embeddings are those of `encoder.checkpoint`, a run or its checkpoints. Where that is empty, as in
the demo, they are the low frequencies of a thumbnail: without a model they tell copies from others,
but do not know that two photos show one thing.

The workdir gets `duplicates.parquet` (which record of which shard is dropped, in favour of which
one, and why) and `results.json`, which holds, where the records say what they are copies of, the
recall of each kind of copy and the precision. Better of two is the one of `against`, then the one
of more pixels, then the earlier one. On several hosts: --multihost, and a workdir that they share.

Buckets: each record is compared with `buckets.count` centroids (records / `buckets.size`) and with
half a bucket, so that the work is least where `buckets.size` is about the root of twice the
records, and below that many it grows with the number of records. A bucket that does not fit in
`ram_gib` is told of before any is written; the same command goes on with a higher bound.
"""

import dataclasses

import ml_collections

from clipdg_jax.data import demo as demo_world

MODES = ("exact", "perceptual", "embedding", "cascade")
PRESETS = ("demo", *MODES, "paper")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    argument = argument or "demo"
    if argument not in PRESETS:
        raise ValueError(f"dedup.py: {argument!r} is none of {', '.join(PRESETS)}")
    if argument == "paper":
        return paper()
    config = demo()
    if argument in MODES:
        config.mode = argument
    return config


def base() -> ml_collections.ConfigDict:
    """Every field."""
    config = ml_collections.ConfigDict()
    config.job = "dedup"
    config.mode = "cascade"  # exact | perceptual | embedding | cascade
    config.seed = 0  # Of the records that the buckets' centroids are fitted to.
    config.pool = "pool"  # A dataset, or a directory of tars, which are read in place.
    config.against = ""  # Comma-separated datasets: what the pool holds of them is dropped.
    config.ram_gib = 16.0  # Bound on the memory of this process.
    config.processes = 0  # That sign records, on each host; with an encoder it is this one.

    config.data = ml_collections.ConfigDict()
    config.data.root = "data"
    config.data.threads = 0  # That decode for an encoder; 0: one for each core.
    config.data.demo = ml_collections.ConfigDict()  # What to make when missing; {}: nothing.

    config.dtype = "bfloat16"  # Of the encoder's computation.
    config.encoder = ml_collections.ConfigDict()
    config.encoder.checkpoint = ""  # A run to take the CLIP of; "": embeddings without a model.
    config.encoder.model = ml_collections.ConfigDict({"name": "ViT-L-14"})

    config.perceptual = ml_collections.ConfigDict()
    config.perceptual.radius = 4  # Of 64 bits.
    config.perceptual.mirrored = True
    config.embedding = ml_collections.ConfigDict()
    config.embedding.cosine = 0.96  # At least.
    config.cascade = ml_collections.ConfigDict()
    config.cascade.cosine = 0.8  # At least, to be looked at.
    config.cascade.distance = 20  # Of the hashes, at most; it only spares the look at the pixels.
    config.cascade.correlation = 0.975  # Of the pixels, at the best of a few cuts of 5 %, at least.

    config.buckets = ml_collections.ConfigDict()
    config.buckets.size = 2048  # Records of a bucket, on average.
    config.buckets.probes = 2  # Buckets that each record goes to.
    config.buckets.sample = 64  # Records for each bucket that the centroids are fitted to.
    config.buckets.iterations = 10  # Of k-means.

    config.inputs = ()  # Runs that make what is missing, as --config takes them.
    config.dry_run = False
    return config


def demo() -> ml_collections.ConfigDict:
    config = base()
    config.data.root = "data/demo"
    config.data.demo = ml_collections.ConfigDict(dataclasses.asdict(demo_world.DemoSpec()))
    config.ram_gib = 2.0
    config.processes = 2
    return config


def paper() -> ml_collections.ConfigDict:
    config = base()
    config.pool = "laion"
    config.against = "imagenet"
    config.ram_gib = 32.0
    config.processes = 16
    config.encoder.checkpoint = "checkpoints/ViT-L-14"
    config.buckets.size = 32_768
    config.buckets.probes = 1
    return config
