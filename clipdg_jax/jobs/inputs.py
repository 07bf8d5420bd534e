"""Runs that make what another run needs, such as the demo's datasets and its classifier.

A config names them in `inputs`, as `--config` takes them, in the order in which they are to run:
`("configs/dedup.py", "configs/classify.py:demo")`. Each lives in its default workdir, and one that
is complete is not run again; they may have inputs of their own.
"""

import importlib.util
import pathlib
import re

import jax
import ml_collections

from clipdg_jax import errors, jobs
from clipdg_jax.data import files

RUNS = pathlib.Path("runs")


def workdir(given: str) -> pathlib.Path:
    """The default workdir `runs/<config file>[-<argument>]`, without characters paths dislike.

    Args:
      given: what --config is given.
    """
    path, _, argument = given.partition(":")
    name = pathlib.Path(path).stem + (f"-{argument}" if argument else "")
    return RUNS / re.sub(r"[^\w=.,+-]", "_", name)


def ensure(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Runs those of `config.inputs` that are not complete, on `config.data.root`.

    Where both configs describe a demo world, it is the same one too. Nothing is run for a run in
    `directory` that is complete itself, nor for a dry run. Other processes that want the same
    inputs meanwhile wait for them.

    Raises:
      errors.UserError: a config cannot be loaded, a run fails, or several processes would have to
        make the inputs together.
    """
    if config.dry_run or _complete(directory):
        return
    for given in config.get("inputs", ()):
        place = workdir(given)
        if _complete(place):
            continue
        if jax.process_count() > 1:
            raise errors.UserError(
                f"{place}: is missing, and is not made by several processes; run `python -m "
                f"clipdg_jax.main --config={given}` once before"
            )
        files.make_directory(place.parent)
        with files.lock(place.with_name(f".{place.name}.lock"), wait=True):
            if _complete(place):
                continue
            own = load(given)
            with own.unlocked():
                own.data.root = config.data.root
                if "demo" in own.data and "demo" in config.data:
                    own.data.demo = config.data.demo
            ensure(own, place)
            print(f"{place}: is needed first: --config={given}", flush=True)
            jobs.module(own).run(own, place)


def load(given: str) -> ml_collections.ConfigDict:
    """The config that `<file>[:<argument>]` names, locked. Raises UserError where there is none."""
    path, _, argument = given.partition(":")
    spec = importlib.util.spec_from_file_location("_config", path)
    if spec is None or spec.loader is None or not pathlib.Path(path).is_file():
        raise errors.UserError(
            f"config.inputs: {path} is no config file; run from the directory that holds configs/"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(argument or None).lock()
    except ValueError as error:
        raise errors.UserError(f"config.inputs: {given}: {error}") from error


def _complete(directory: pathlib.Path) -> bool:
    return (directory / "results.json").is_file()
