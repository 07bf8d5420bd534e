"""The cells of a sweep: names, order and command lines."""

import pathlib
import shlex
import sys

import pytest

from clipdg_jax import errors
from clipdg_jax.study import cells

TEXTS = ("configs/mix.py:study,natural=3,rendition=1", "configs/mix.py:natural=1 optim.lr=1e-3")


def test_cells_come_seed_by_seed_with_names_of_their_own():
    made = cells.expand(TEXTS, (0, 1), ["examples=10"])
    assert [cell.name for cell in made] == [
        "mix-study,natural=3,rendition=1-seed0",
        "mix-natural=1-lr=1e-3-seed0",
        "mix-study,natural=3,rendition=1-seed1",
        "mix-natural=1-lr=1e-3-seed1",
    ]
    # What is a cell's own comes after what all have, and so counts.
    assert made[3].fields == ("examples=10", "optim.lr=1e-3", "seed=1")
    assert [cell.fields for cell in cells.expand(TEXTS, ())] == [(), ("optim.lr=1e-3",)]


def test_what_is_operational_is_in_the_fields_and_not_in_the_name():
    (cell,) = cells.expand(["configs/mix.py data.root=/a/b mesh.fsdp=2 data.demo.size=0.5"], ())
    assert cell.name == "mix-size=0.5"
    assert cell.fields == ("data.root=/a/b", "mesh.fsdp=2", "data.demo.size=0.5")


def test_commands_are_runs_of_the_main_program():
    (cell,) = cells.expand(["configs/x.py:y data.root='a b'"], (3,))
    assert cell.command(pathlib.Path("runs/z")) == [
        sys.executable,
        "-m",
        "clipdg_jax.main",
        "--config=configs/x.py:y",
        "--workdir=runs/z/x-y-seed3",
        "--config.data.root=a b",
        "--config.seed=3",
    ]
    # A launcher's line holds the same arguments, as a shell reads them.
    (line,) = cells.array([cell], pathlib.Path("runs/z")).splitlines()
    assert shlex.split(line) == cell.command(pathlib.Path("runs/z"))[3:]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ((), "is empty"),
        (("",), "'' is no run"),
        (("configs/mix.py seed",), "is no run"),
        (("configs/mix.py --config.seed=1",), "is no run"),
        (("configs/mix.py 'seed=1",), "No closing quotation"),
        ((TEXTS[0], TEXTS[0]), "is there twice"),
    ],
)
def test_what_is_no_list_of_runs_is_one_line(texts, reason):
    with pytest.raises(errors.UserError, match=reason):
        cells.expand(texts, (0,))
