"""Runs a sweep: other configs with other mixes, sizes and seeds, one after the other.

    python -m clipdg_jax.main --config=configs/sweep.py:demo
    python -m clipdg_jax.main --config=configs/sweep.py:demo --config.parallel=2
    python -m clipdg_jax.main --config=configs/sweep.py:paper --config.dry_run=True
    python -m clipdg_jax.main --config=configs/sweep.py:paper --config.print_array=True > runs.txt
    python -m clipdg_jax.main --config=configs/sweep.py:study --config.set=examples=1000

The argument is a preset. Each run is a process of its own in a workdir of its own, below the
sweep's; the same command again goes on where it was stopped, and runs what failed once more. Two
of these commands, on one host or on several that share the directory, share the work: no run is run
twice. `<workdir>/status.txt` has the table that a terminal shows. With --config.print_array the
runs are printed, one line of arguments each, for a launcher (launch/slurm.sh) to take line i as
array task i. Then configs/report.py makes a page of the results.

Presets:
  demo   seven ratios of natural to rendition records, 16 000 in all; as controls, random records of
         the unsorted pool, of the same and of smaller numbers, and natural alone in as small ones;
         three seeds: 45 runs of about 3 minutes of one core.
  study  the mixes of the README, three seeds, and the cue correlation at three values: 13 runs of
         10 minutes of one core.
  paper  the 26 pre-trainings of the domain study, one seed; see configs/paper.py.
"""

import ml_collections

from configs import paper as paper_runs

PRESETS = ("demo", "study", "paper")
RATIOS = ("16k,0k", "14k,2k", "12k,4k", "8k,8k", "4k,12k", "2k,14k", "0k,16k")
POOL = ("16k", "8k", "4k", "2k", "1k")
NATURAL = ("8k", "4k", "2k")
STUDY_MIXES = ("natural=1,rendition=0", "natural=3,rendition=1", "natural=0,rendition=1")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    argument = argument or "demo"
    made = {"demo": demo, "study": study, "paper": paper}
    if argument not in made:
        raise ValueError(f"sweep.py: {argument!r} is none of {', '.join(PRESETS)}")
    return made[argument]()


def base() -> ml_collections.ConfigDict:
    """Every field."""
    config = ml_collections.ConfigDict()
    config.job = "sweep"
    config.cells = ()  # "<config> [<field>=<value> ...]", each a run.
    config.seeds = (0,)  # Of every cell; (): each cell's own.
    config.set = ()  # "<field>=<value>" for every cell.
    config.parallel = 1  # Runs at a time, each on its share of the cores.
    config.print_array = False  # Prints the runs' arguments, a line each, and runs nothing.
    config.dry_run = False  # Says what they would take.
    return config


def demo() -> ml_collections.ConfigDict:
    config = base()
    mixes = (f"natural={n},rendition={r}" for n, r in (ratio.split(",") for ratio in RATIOS))
    controls = (*(f"pool={size}" for size in POOL), *(f"natural={size}" for size in NATURAL))
    config.cells = tuple(f"configs/mix.py:study,{mix}" for mix in (*mixes, *controls))
    config.seeds = (0, 1, 2)
    # All see as many examples, so that they differ in which records these are of.
    sizes = (f"data.demo.{name}=16000" for name in ("natural", "rendition", "pool"))
    length = ("batch_size=32", "steps=1000", "eval_every=500")
    config.set = (*length, "data.root=data/sweep", *sizes)
    return config


def study() -> ml_collections.ConfigDict:
    config = base()
    plain = [f"configs/mix.py:study,{mix}" for mix in STUDY_MIXES]
    main = tuple(f"{run} seed={seed}" for seed in (0, 1, 2) for run in plain)
    # A world of its own for each correlation of the cues; 0.9 is that of the others.
    others = tuple(
        f"{run} seed=0 data.demo.cue_correlation={cue} data.root=data/study-cue{cue}"
        for cue in (0.3, 0.6)
        for run in plain[:2]
    )
    config.cells = main + others
    config.seeds = ()
    return config


def paper() -> ml_collections.ConfigDict:
    config = base()
    config.cells = tuple(f"configs/paper.py:{run}" for run in paper_runs.PRETRAININGS)
    return config
