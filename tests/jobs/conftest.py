"""Fixtures of the jobs' tests: a small demo world and runs on it."""

import functools
import os
import pathlib

import ml_collections
import pytest

from clipdg_jax.data import demo
from tests.jobs import small_runs


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory of all test processes, for what is dear and need only be made once."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def demo_root(shared_tmp: pathlib.Path) -> pathlib.Path:
    """Made once for all test processes, which wait for the one that makes it."""
    root = shared_tmp / "demo-world"
    demo.ensure(root, demo.DemoSpec(**small_runs.WORLD), processes=0)
    return root


@pytest.fixture
def small(demo_root):
    """A function (argument, **fields) -> config of the small run."""

    def make(argument: str = "", **fields) -> ml_collections.ConfigDict:
        config = small_runs.load_config("mix").get_config(argument)
        config.data.root = str(demo_root)
        config.data.demo.update(small_runs.WORLD)
        config.update_from_flattened_dict({**small_runs.RUN, **fields})
        return config

    return make


@pytest.fixture(scope="session")
def command(demo_root):
    """A function (workdir, *flags) -> the command line of the small run, for other processes."""
    return functools.partial(small_runs.command, demo_root)
