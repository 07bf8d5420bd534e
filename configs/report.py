"""Reports on a sweep: mixing curve, effective robustness, a law of accuracy, and one HTML page.

    python -m clipdg_jax.main --config=configs/report.py                # of configs/sweep.py:demo
    python -m clipdg_jax.main --config=configs/report.py:study
    python -m clipdg_jax.main --config=configs/report.py --config.runs=runs/sweep-demo,runs/mix

The argument is the preset of configs/sweep.py to report on, in `runs/sweep-<preset>`; seconds
of one core. The workdir gets `report.html`, which needs nothing but itself, `report.md`,
`groups.csv`, `runs.csv`, `law.csv`, `results.json`, a folder `charts` of SVG files
(`mixing-<records>`, `robustness`, `law`, `loss`, `natural`, `rendition`) and, for up to six mixes,
`accuracies.png`. It can be made before all runs are finished: what is left out is named. The same
command again makes it anew.

Presets: demo, study, paper.
"""

import ml_collections

PRESETS = ("demo", "study", "paper")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    argument = argument or "demo"
    made = {"demo": demo, "study": study, "paper": paper}
    if argument not in made:
        raise ValueError(f"report.py: {argument!r} is none of {', '.join(PRESETS)}")
    return made[argument]()


def base() -> ml_collections.ConfigDict:
    """Every field."""
    config = ml_collections.ConfigDict()
    config.job = "report"
    config.title = "What the mix does"
    config.runs = ""  # Comma-separated workdirs of sweeps and of runs.
    config.suite = ""  # What is compared on; "": the suite that most runs have.
    config.baselines = ""  # Mixes, as pool=*, that the line of effective robustness is fitted to.
    config.csv = ""  # Other models as baselines: a CSV file with columns model, set, accuracy.
    config.reference = ""  # Mixes that relative accuracy refers to.
    # Shares of natural and of rendition records in each dataset.
    config.composition = ml_collections.ConfigDict({"natural": (1.0, 0.0), "rendition": (0.0, 1.0)})
    config.pairs = ""  # <run>:<run>, to be compared image by image; several separated by ;
    config.resamples = 2000
    config.seed = 0
    config.dry_run = False
    return config


def demo() -> ml_collections.ConfigDict:
    config = base()
    config.title = "What the mix does: the demo world"
    config.runs = "runs/sweep-demo"
    config.suite = "demo"
    config.baselines = "pool=*"
    config.reference = "pool=*"
    config.composition.pool = (0.56, 0.24)  # As the pool is drawn; the rest is ambiguous.
    return config


def study() -> ml_collections.ConfigDict:
    config = base()
    config.title = "Natural, mixed and rendition training: the demo world"
    config.runs = "runs/sweep-study"
    config.suite = "demo"
    config.reference = "natural=3,rendition=1"
    return config


def paper() -> ml_collections.ConfigDict:
    config = base()
    config.title = "What the mix does: LAION"
    config.runs = "runs/sweep-paper"
    config.suite = "imagenet_clean"
    config.baselines = "random-natural=*"
    config.reference = "random-natural=*"
    # Of the deduplicated 200 M, 57 M and 16 M were classified as such.
    config.composition["random-natural"] = (57 / 200, 16 / 200)
    return config
