"""A report: the runs of sweeps in, what they say together out, as tables and as a page."""

import pathlib

import ml_collections

from clipdg_jax import errors
from clipdg_jax.data import files
from clipdg_jax.evaluation import paired
from clipdg_jax.study import groups, report, runs


def run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Reads the runs and writes the report; each time anew, for runs may have been added.

    Raises:
      errors.UserError: a place is no sweep and no run, no run is left, a pair is not there.
    """
    places = [place for place in config.runs.split(",") if place]
    if not places:
        raise errors.UserError(
            "config.runs: is empty; give workdirs such as runs/sweep-demo,runs/mix"
        )
    if config.dry_run:
        print(f"would report on {', '.join(places)}")
        return
    collected = runs.collect(places, config.suite)
    compared = _pairs(config.pairs, collected)
    options = groups.Options(
        composition={
            name: (float(shares[0]), float(shares[1]))
            for name, shares in config.composition.to_dict().items()
        },
        baselines=config.baselines,
        reference=config.reference,
        csv=config.csv,
        resamples=config.resamples,
        seed=config.seed,
    )
    study = groups.make(collected.runs, collected.suite, options)
    results = report.gather(study, options, collected.left_out)
    files.make_directory(directory)
    with files.lock(directory / ".lock"):
        report.write(directory, results, study, compared, config.title)
        files.write_json(directory / "results.json", results)
    print(f"{report.text(results)}\n\n{directory / report.PAGE}: the page")


def _pairs(given: str, collected: runs.Collected) -> dict[str, list[paired.Comparison]]:
    """The comparisons that "first:second,..." asks for, by the names of runs."""
    by_name = {one.name: one for one in collected.runs}
    found = {}
    for pair in filter(None, given.split(";")):
        names = [name.strip() for name in pair.split(":")]
        missing = [name for name in names if name not in by_name]
        if missing or len(names) != 2:
            raise errors.UserError(
                f"config.pairs: {pair!r}: {missing[0] if missing else 'not two runs'}: is none of "
                "the runs of this report; write <run>:<run>, several separated by semicolons"
            )
        first, second = (by_name[name].predictions for name in names)
        found[f"{names[0]}, then {names[1]}"] = paired.compare(first, second)
    return found
