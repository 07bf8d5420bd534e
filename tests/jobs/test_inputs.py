"""Runs that make what another run needs."""

import concurrent.futures
import pathlib
import threading
import types

import jax
import ml_collections
import pytest

from clipdg_jax import jobs
from clipdg_jax.errors import UserError
from clipdg_jax.jobs import inputs

CONFIG = """
import ml_collections

PARENTS = {parents!r}

def get_config(argument=None):
    if argument == "wrong":
        raise ValueError("'wrong' is no preset")
    config = ml_collections.ConfigDict()
    config.job, config.name, config.dry_run = "fake", "{name}" + (argument or ""), False
    config.inputs = PARENTS
    config.data = ml_collections.ConfigDict({{"root": "elsewhere", "demo": {{"size": 1}}}})
    return config
"""


def config_file(name: str, *parents: str) -> str:
    """A config in the current directory, of a job that notes what it was given."""
    pathlib.Path(f"{name}.py").write_text(CONFIG.format(name=name, parents=parents))
    return f"{name}.py"


def wanting(*given: str) -> ml_collections.ConfigDict:
    """A config that has these inputs."""
    data = {"root": "mine", "demo": {"size": 7}}
    return ml_collections.ConfigDict({"inputs": given, "data": data, "dry_run": False})


def note(config, directory):
    """The fake job."""
    directory.mkdir(parents=True)
    with open("order.txt", "a") as file:
        file.write(f"{config.name} {config.data.root} {config.data.demo.size}\n")
    (directory / "results.json").write_text("{}")


@pytest.fixture(autouse=True)
def faked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "module", lambda config: types.SimpleNamespace(run=note))


def order() -> list[str]:
    path = pathlib.Path("order.txt")
    return path.read_text().splitlines() if path.exists() else []


def test_inputs_run_before_and_once_on_the_root_of_what_wants_them():
    config_file("pool")
    config_file("sorted", "pool.py:big")
    inputs.ensure(wanting("sorted.py", "pool.py"), pathlib.Path("runs/mix"))
    assert order() == ["poolbig mine 7", "sorted mine 7", "pool mine 7"]
    assert pathlib.Path("runs/pool-big/results.json").exists()
    inputs.ensure(wanting("sorted.py", "pool.py"), pathlib.Path("runs/mix"))
    assert len(order()) == 3


def test_nothing_runs_for_a_dry_run_or_a_complete_one():
    wanted = wanting(config_file("pool"))
    done = pathlib.Path("done")
    done.mkdir()
    (done / "results.json").write_text("{}")
    inputs.ensure(wanted, done)
    wanted.dry_run = True
    inputs.ensure(wanted, pathlib.Path("runs/mix"))
    assert order() == []


def test_runs_that_want_the_same_input_make_it_once():
    wanted = wanting(config_file("pool"))
    start = threading.Barrier(2)

    def ensure(number: int) -> None:
        start.wait()
        inputs.ensure(wanted, pathlib.Path(f"runs/mix{number}"))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(ensure, range(2)))
    assert order() == ["pool mine 7"]


@pytest.mark.parametrize(
    ("given", "said"),
    [("gone.py", r"config\.inputs: gone\.py is no config"), ("pool.py:wrong", "is no preset")],
)
def test_a_wrong_input_is_one_line(given, said):
    config_file("pool")
    with pytest.raises(UserError, match=said) as refused:
        inputs.ensure(wanting(given), pathlib.Path("runs/mix"))
    assert "\n" not in str(refused.value)


def test_several_processes_do_not_make_inputs(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"runs/pool: is missing.*--config=pool\.py"):
        inputs.ensure(wanting(config_file("pool")), pathlib.Path("runs/mix"))


def test_workdirs_are_named_after_the_config():
    assert inputs.workdir("configs/mix.py") == pathlib.Path("runs/mix")
    assert inputs.workdir("configs/mix.py:natural=1,rendition=0") == pathlib.Path(
        "runs/mix-natural=1,rendition=0"
    )
    assert inputs.workdir("a/b.py:c/d e").name == "b-c_d_e"


def test_unknown_jobs_are_named(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"config\.job: 'nap' is unknown; one of pretrain"):
        jobs.module(ml_collections.ConfigDict({"job": "nap"}))
