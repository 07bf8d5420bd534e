"""Audits the datasets that curation wrote: how pure they are, and what the pool holds.

    python -m clipdg_jax.main --config=configs/audit.py          # the demo, simulated annotators
    python -m clipdg_jax.main --config=configs/audit.py:own \\
        --config.data.root=data/laion --config.datasets=natural,rendition

The first call draws records at random of each written dataset, and of the pool in strata of its
decisions, into a label store, and prints the commands that show them to annotators. When they are
labelled (each by `labels.min_annotators`, disagreements decided), the same command again reports
the precision of each dataset with its interval, beside the claimed one, and the share of each
domain in the pool: `results.json`, `audit.md` and `audit.png`. 500 records take one person an hour
or less, and show a precision of 98 % to within 1.3 points.

Presets: `demo` (the default), which makes what it audits and labels by itself, in seconds after
that; `own`, for datasets of your own, labelled by people.

A pool in tars cannot be read at random: its shares then come from the written natural, rendition
and ambiguous datasets, if all three are audited.
"""

import ml_collections

PRESETS = ("demo", "own")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    argument = argument or "demo"
    if argument not in PRESETS:
        raise ValueError(f"audit.py: {argument!r} is none of {', '.join(PRESETS)}")
    return {"demo": demo, "own": own}[argument]()


def own() -> ml_collections.ConfigDict:
    """Every field."""
    config = ml_collections.ConfigDict()
    config.job = "audit"
    config.inputs = ()  # Configs of runs that make what is audited, when they have not been run.
    config.seed = 0  # Of the draws.

    config.data = ml_collections.ConfigDict()
    config.data.root = "data"

    config.datasets = "natural,rendition"  # Comma-separated; as curation wrote them.
    config.n = 500  # Records to draw of each.
    config.claimed = 0.98  # Precision that natural and rendition are said to have.

    config.pool = ml_collections.ConfigDict()
    config.pool.name = "pool"  # What they were written from; "": do not ask for its shares.
    config.pool.n = 600  # Records to draw of it, besides.
    config.pool.scores = "runs/curate/scores"
    config.pool.duplicates = ""  # The list that curation dropped by; "": none.

    config.labels = ml_collections.ConfigDict()
    config.labels.path = "audit.sqlite"  # Where draws and labels go.
    config.labels.min_annotators = 1  # Who must have labelled a record.
    config.labels.simulate = ml_collections.ConfigDict()  # Demo annotators; {}: none.

    config.allow_partial = False  # Report on what is labelled so far as well, as partial.json.
    config.dry_run = False
    return config


def demo() -> ml_collections.ConfigDict:
    config = own()
    config.inputs = ("configs/curate.py",)
    config.data.root = "data/demo"
    config.pool.duplicates = "runs/dedup/duplicates.parquet"
    config.labels.path = ""  # In the workdir.
    config.labels.min_annotators = 3
    config.labels.simulate = ml_collections.ConfigDict({"annotators": 3, "error": 0.01})
    return config
