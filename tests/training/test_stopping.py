"""SIGTERM: the loop saves the step that ran and says so; a second one ends the process."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest

from clipdg_jax import stopping
from clipdg_jax.training import loop


class Saved:
    """Checkpoints that note what they are given."""

    def __init__(self):
        self.steps: list[int] = []
        self.states: list[dict] = []
        self.extra: list[dict] = []

    def save(self, step, state, extra):
        self.steps.append(step)
        self.states.append(state)
        self.extra.append(extra)

    def wait(self):
        pass

    def latest(self):
        return self.steps[-1] if self.steps else None


class Log:
    """A metrics log that notes the steps."""

    def __init__(self):
        self.steps: list[int] = []

    def write(self, step, values):
        self.steps.append(step)

    def progress(self, step, note=""):
        pass


class Feed:
    """Batches that are numbers; `asked` is called before each."""

    waited = 0.0

    def __init__(self, asked):
        self._asked = asked

    def __iter__(self):
        for number in range(1, 100):
            self._asked(number)
            yield {}, {"number": jnp.asarray(number)}


def train(asked, metrics=lambda batch: {}, steps=10, checkpoint=4):
    """Runs the loop on a state that counts its steps."""

    def step(state, batch, scalars):
        told = {"loss": jnp.asarray(1.0), "valid": jnp.asarray(2), "finite": jnp.asarray(True)}
        return {"count": state["count"] + 1}, told | metrics(batch)

    saved, log = Saved(), Log()
    outcome = None
    try:
        outcome = loop.train(
            step, {"count": 0}, Feed(asked), progress=loop.Progress(), steps=steps, batch_size=2,
            cadence=loop.Cadence(log=1, checkpoint=checkpoint), log=log, checkpoints=saved,
            scalars={}, step_flops=lambda batch: 1.0, source_names=(), evaluate=None,
            workdir=pathlib.Path(),
        )  # fmt: skip
    except stopping.Stopped as stopped:
        return saved, log, str(stopped)
    return saved, log, outcome


def test_the_step_that_ran_is_saved():
    before = signal.getsignal(signal.SIGTERM)

    def asked(number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    saved, log, told = train(asked)
    # It comes before step 6 and is seen when the metrics of step 5 are read, while 6 runs.
    assert told == "step 6 of 10 is saved"
    assert saved.steps == [4, 6]
    assert saved.states[-1] == {"count": 6}
    assert saved.extra[-1]["step"] == 6
    assert log.steps == [1, 2, 3, 4, 5, 6]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_last_step_is_the_end_and_no_stop():
    def asked(number):
        if number == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    saved, _, outcome = train(asked)
    assert saved.steps == [4, 8, 10]
    assert outcome.progress.step == 10


def test_another_processs_request_comes_with_the_metrics():
    def metrics(batch):
        return {"stop": batch["number"] >= 3}

    saved, log, told = train(lambda number: None, metrics)
    # What step 3 tells is read while step 4 runs, on every process alike.
    assert told == "step 4 of 10 is saved"
    assert saved.steps[-1] == 4
    assert log.steps == [1, 2, 3, 4]


@pytest.mark.parametrize("times", [1, 2])
def test_a_second_one_ends_the_process(times):
    code = f"""
    import os, signal, time
    from clipdg_jax import stopping
    with stopping.watch():
        for _ in range({times}):
            os.kill(os.getpid(), signal.SIGTERM)
        print(stopping.asked())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(stopping.__file__).parents[1])},
    )
    assert (done.returncode, done.stdout) == ((0, "True\n") if times == 1 else (-15, ""))
