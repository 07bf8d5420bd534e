"""Runs that make what another run needs, such as the demo's datasets and its classifier.

A config names them in `inputs`, as `--config` takes them, in the order in which they are to run:
`("configs/dedup.py", "configs/classify.py:demo")`. Each lives in its default workdir, and one that
is complete is not run again; they may have inputs of their own.
"""

import pathlib
import re
import traceback
from collections.abc import Sequence

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

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
            own = load(given, where="config.inputs")
            with own.unlocked():
                own.data.root = config.data.root
                if "demo" in own.data and "demo" in config.data:
                    own.data.demo = config.data.demo
            ensure(own, place)
            print(f"{place}: is needed first: --config={given}", flush=True)
            jobs.module(own).run(own, place)


def load(
    given: str, fields: Sequence[str] = (), where: str = "--config"
) -> ml_collections.ConfigDict:
    """The config that a command line gives, locked.

    Args:
      given: what --config is given, `<file>[:<argument>]`.
      fields: "field=value", set as by --config.field=value; the last one of a field counts.
      where: what an error begins with, the flag or field that named it.

    Raises:
      errors.UserError: there is no such config, argument or field.
    """
    path, _, _ = given.partition(":")
    if not pathlib.Path(path).is_file():
        raise errors.UserError(
            f"{where}: {path} is no config file; run from the directory with configs/"
        )
    argv = ["", f"--config={given}", *(f"--config.{field}" for field in fields)]
    own = flags.FlagValues()  # Not the process's: its command line is another one.
    try:
        config_flags.DEFINE_config_file("config", flag_values=own, sys_argv=argv)
        own(argv)
        return own["config"].value
    except errors.UserError:
        raise
    except Exception as error:  # A config file is anyone's code.
        raise errors.UserError(f"{where}: {given}: {explain(error, argv)}") from error


def explain(error: Exception, argv: Sequence[str]) -> str:
    """One line for an error of flag parsing or of a config file."""
    text = str(error).strip() or type(error).__name__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, AttributeError | KeyError) and "ml_collections" in frame.filename:
        name = re.findall(r"\w+", text)[0]
        flag = next((a.partition("=")[0] for a in argv if name in a), name).lstrip("-")
        close = re.search(r'Did you mean "(\w+)"', text)
        hint = f"did you mean {flag.replace(name, close[1])}?" if close else "see its docstring"
        return f"{flag}: the config has no such field; {hint}"
    lines = text.splitlines()
    if "config file" in lines[0]:  # What follows is a traceback; its end is the error.
        lines = [re.sub(r"^\w*(Error|Exception): |\[Errno \d+\] ", "", lines[-1].strip())]
    elif isinstance(error, AttributeError | KeyError | ImportError):
        # Of a library, or of the code of a config file.
        lines = [f"{lines[0]}, in {frame.filename}:{frame.lineno}"]
    return f"flags: {lines[0]}; see --help and the docstring of the config file"


def _complete(directory: pathlib.Path) -> bool:
    return (directory / "results.json").is_file()
