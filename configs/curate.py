"""Sorts a pool by domain: scores it and writes natural and rendition datasets and clean test sets.

    python -m clipdg_jax.main --config=configs/curate.py                # the demo pool
    python -m clipdg_jax.main --config=configs/curate.py:list --config.list=urls.txt
    python -m clipdg_jax.main --config=configs/curate.py:paper --config.dry_run=True

Presets:
  demo   the demo pool with the demo's classifier; half a minute on two cores, after what it needs.
  list   the records that a list of keys or URLs names, such as a published one; nothing is scored.
  paper  LAION in tars with a ViT-L/14 classifier, random controls and ImageNet's test sets: about
         a day for 200 M images on 8 devices at 2 500 images/s, reading the tars twice.

The datasets are `<out>/natural`, `<out>/rendition`, ..., the clean test sets `<out>/clean/<name>`
with a suite `<out>/<suite>_clean`. The workdir gets `report.html`, `release.parquet` and
`results.json`, which holds, where every record names its true domain, the precision and recall of
what was written. On several hosts: --multihost, and a workdir and `out` that they share.
"""

import dataclasses

import ml_collections

from clipdg_jax.data import demo as demo_world

PRESETS = ("demo", "list", "paper")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    argument = argument or "demo"
    if argument not in PRESETS:
        raise ValueError(f"curate.py: {argument!r} is none of {', '.join(PRESETS)}")
    return {"demo": demo, "list": listed, "paper": paper}[argument]()


def base() -> ml_collections.ConfigDict:
    """Every field."""
    config = ml_collections.ConfigDict()
    config.job = "curate"
    config.seed = 0  # Of the random controls.
    config.pool = "pool"  # A dataset, or a directory of tars, which are read in place.
    config.classifier = ""  # Directory of a saved classifier.
    config.duplicates = ""  # A duplicates.parquet of configs/dedup.py; "": none are dropped.
    config.out = ""  # Where the datasets go; "": data.root.
    config.write = "natural,rendition"  # Of natural, rendition, ambiguous.
    config.controls = ""  # Of the same: random-<name>, as many records drawn from the whole pool.
    config.test_sets = ""  # Suites, and datasets as <name>=<domain>, comma-separated.
    config.list = ""  # File of keys or URLs (.txt, .csv, .parquet), in place of a classifier.
    config.list_name = "listed"  # Of its dataset.
    config.list_domain = ""  # Of its images; "": the records' own.
    config.batch_size = 256  # Images that are scored together.
    config.processes = 0  # On each host; 0: the run's own. An accelerator scores with that one.
    config.target_shard_bytes = 1 << 30

    config.data = ml_collections.ConfigDict()
    config.data.root = "data"
    config.data.vocab_size = 49_408  # Of the tokeniser of the captions.
    config.data.keep_uncaptioned = False
    config.data.threads = 0  # That decode, in each process; 0: one for each core.
    config.data.demo = ml_collections.ConfigDict()  # What to make when missing; {}: nothing.

    config.inputs = ()  # Runs that make what is missing, as --config takes them.
    config.dry_run = False
    return config


def demo() -> ml_collections.ConfigDict:
    config = base()
    config.inputs = ("configs/dedup.py", "configs/classify.py:demo")
    config.data.root = "data/demo"
    config.data.demo = ml_collections.ConfigDict(dataclasses.asdict(demo_world.DemoSpec()))
    config.data.vocab_size = config.data.demo.vocab_size
    config.classifier = "runs/classify-demo/ensemble"
    config.duplicates = "runs/dedup/duplicates.parquet"
    config.test_sets = "demo,demo_heldout"
    return config


def listed() -> ml_collections.ConfigDict:
    config = base()
    config.list = "urls.txt"
    return config


def paper() -> ml_collections.ConfigDict:
    config = base()
    config.pool = "laion"
    config.classifier = "runs/classify-paper/finetune"
    config.duplicates = "runs/dedup-paper/duplicates.parquet"
    config.controls = "natural,rendition"
    config.test_sets = "imagenet"
    config.processes = 16
    return config
