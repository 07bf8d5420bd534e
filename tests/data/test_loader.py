"""The loader: batches are a function of the configuration and the step, and nothing is lost."""

import dataclasses
import io
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from clipdg_jax import errors
from clipdg_jax.data import images, loader, mixture, schema, shards, tokenizer

TOKENIZER = tokenizer.get_tokenizer(1024)


def picture(seed, height=40, width=44):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 256, (5, 5, 3), np.uint8)
    image = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


@dataclasses.dataclass
class Memory:
    """A source whose records are made from their index; those in `bad` are damaged."""

    name: str
    size: int
    bad: tuple[int, ...] = ()
    tokenizer: str | None = None
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    reads: int = 0

    def __len__(self):
        return self.size

    def record(self, index):
        self.reads += 1
        if index in self.bad and index % 2:
            raise shards.RecordError(f"record {index}")
        image = b"damaged" if index in self.bad else picture(index)
        tokens = None
        if self.tokenizer:
            tokens = np.array([TOKENIZER.sot, 300 + index, TOKENIZER.eot], np.uint16)
        caption = f"picture {index} of {self.name}"
        return schema.Record(str(index), image, caption, tokens, label=index % 7)


class Blocks(Memory):
    """The same, and counts reads of ranges."""

    def records(self, start, stop):
        self.reads += 1 - (stop - start)
        found = []
        for index in range(start, stop):
            try:
                found.append(self.record(index))
            except shards.RecordError as error:
                found.append(error)
        return found


def batches(sources=None, mix="a=3,b=1", **options):
    if sources is None:
        sources = [Memory("a", 50, bad=(3, 8)), Memory("b", 20)]
    options = {
        "batch_size": 12,
        "steps": 10,
        "seed": 0,
        "image_size": 16,
        "context_length": 12,
        "tokenizer": TOKENIZER,
    } | options
    with loader.train_batches(sources, mixture.parse_mix(mix), **options) as stream:
        return list(stream)


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_shapes_and_types():
    batch = batches(steps=1)[0]
    found = {name: (value.dtype.name, value.shape) for name, value in batch.items()}
    assert found == {
        "image": ("uint8", (12, 16, 16, 3)),
        "tokens": ("int32", (12, 12)),
        "valid": ("bool", (12,)),
        "source": ("int32", (12,)),
        "index": ("int64", (12,)),
        "label": ("int32", (12,)),
    }


@pytest.mark.parametrize("block", [1, 8])
def test_rows_do_not_depend_on_threads_workers_processes_or_where_it_starts(block):
    options = {"shuffle_block": block, "shuffle_window": 6}
    expected = batches(threads=0, **options)
    assert_equal(batches(threads=3, **options), expected)
    assert_equal(batches(start_step=7, **options), expected[7:])
    assert_equal(batches(workers=2, start_step=3, prefetch=1, **options), expected[3:])
    shares = [batches(process_index=p, process_count=3, **options) for p in range(3)]
    for step, batch in enumerate(expected):
        for name, whole in batch.items():
            parts = [share[step][name] for share in shares]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_images_and_tokens_are_those_of_the_row():
    sources = [Memory("a", 50), Memory("b", 20)]
    for batch in batches(sources, crop_scale=(1.0, 1.0), crop_ratio=(1.1, 1.1)):
        for row in range(12):
            record = sources[batch["source"][row]].record(int(batch["index"][row]))
            # An area and ratio (44 / 40) that only the whole image has: the crop is a resize.
            pixels = Image.fromarray(images.decode(record.image))
            expected = np.asarray(pixels.resize((16, 16), Image.Resampling.BICUBIC))
            assert np.abs(batch["image"][row].astype(int) - expected).max() <= 1
            np.testing.assert_array_equal(batch["tokens"][row], TOKENIZER([record.caption], 12)[0])


def test_crops_differ_between_rows_epochs_and_seeds():
    def crops(seed):
        found = {}
        made = batches([Memory("a", 6)], "a=1", steps=4, seed=seed, crop_scale=(0.3, 0.9))
        for batch in made:
            for index, image in zip(batch["index"], batch["image"], strict=True):
                found.setdefault(int(index), []).append(image.tobytes())
        return found

    first, second = crops(0), crops(1)
    for index in range(6):
        assert len(set(first[index] + second[index])) == 16


@pytest.mark.parametrize("block", [1, 8])
def test_bad_records_are_masked_and_no_others(block):
    seen = set()
    for batch in batches(steps=30, shuffle_block=block):
        bad = (batch["source"] == 0) & np.isin(batch["index"], (3, 8))
        np.testing.assert_array_equal(batch["valid"], ~bad)
        assert not batch["image"][bad].any()
        assert not batch["tokens"][bad].any()
        seen |= set(batch["index"][bad].tolist())
    assert seen == {3, 8}


def test_other_exceptions_reach_the_caller_from_workers_too():
    class Broken(Memory):
        def record(self, index):
            raise errors.UserError("shard x: cannot be opened")

    for workers in (0, 1):
        with pytest.raises(errors.UserError, match="shard x"):
            batches([Broken("a", 50)], "a=1", workers=workers)


def test_a_worker_that_is_killed_is_told():
    mix = mixture.parse_mix("a=1")
    options = {"batch_size": 4, "image_size": 16, "context_length": 12, "tokenizer": TOKENIZER}
    with loader.train_batches(
        [Memory("a", 50)], mix, steps=10**6, seed=0, workers=1, prefetch=1, **options
    ) as stream:
        next(stream)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="terminated unexpectedly"):
            list(stream)  # what it had made, then the error


def test_stored_tokens_are_used_if_they_are_this_tokenisers():
    ours = Memory("a", 50, tokenizer=TOKENIZER.hash)
    batch = batches([ours], "a=1", steps=1)[0]
    assert (batch["tokens"][:, 1] == 300 + batch["index"]).all()
    other = Memory("a", 50, tokenizer="another")
    with pytest.warns(UserWarning, match="tokens are those of another"):
        batch = batches([other], "a=1", steps=1)[0]
    caption = f"picture {batch['index'][0]} of a"
    np.testing.assert_array_equal(batch["tokens"][0], TOKENIZER([caption], 12)[0])


def test_amounts_name_the_same_records_in_every_epoch():
    made = batches([Memory("a", 50), Memory("b", 20)], "a=.02k,b=.01k", steps=10, batch_size=6)
    drawn = np.concatenate([batch["index"][batch["source"] == 0] for batch in made])
    epochs = drawn.reshape(2, 20)
    assert set(epochs[0]) == set(epochs[1])
    assert len(set(epochs[0])) == 20


def test_block_mode_reads_each_block_once_an_epoch():
    source = Blocks("a", 400)
    made = batches(
        [source], "a=1", steps=20, batch_size=20, shuffle_block=40, shuffle_window=2, threads=0
    )
    assert len({int(i) for batch in made for i in batch["index"]}) == 400
    assert source.reads == 10


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mix": "a=1k,b=.01k"}, "holds 50"),
        ({"sources": [Memory("a", 0), Memory("b", 1)]}, "holds no records"),
        ({"process_count": 5}, "does not divide by the 5 processes"),
        ({"workers": -1}, "workers=-1"),
        ({"shuffle_block": 0}, "shuffle_block"),
    ],
)
def test_mistakes_are_told(options, problem):
    with pytest.raises(errors.UserError, match=problem):
        batches(**options)


def test_too_little_shared_memory_is_told(monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(errors.UserError, match="shm-size"):
        batches(workers=2)


@pytest.mark.parametrize(("source_type", "workers"), [(Memory, 0), (Blocks, 0), (Blocks, 2)])
def test_evaluation_holds_every_record_once(workers, source_type):
    source = source_type("t", 23, bad=(3, 8))
    parts = []
    for process in range(2):
        with loader.eval_batches(
            source,
            batch_size=8,
            image_size=16,
            process_index=process,
            process_count=2,
            workers=workers if process else 0,
        ) as stream:
            parts.append(list(stream))
    assert [len(part) for part in parts] == [3, 3]
    assert all(batch["image"].shape == (4, 16, 16, 3) for part in parts for batch in part)
    index = np.concatenate([part[s]["index"] for s in range(3) for part in parts])
    assert index.tolist() == [*range(23), -1]
    valid = np.concatenate([part[s]["valid"] for s in range(3) for part in parts])
    assert np.flatnonzero(~valid).tolist() == [3, 8, 23]
    label = np.concatenate([part[s]["label"] for s in range(3) for part in parts])
    assert label[valid].tolist() == [i % 7 for i in range(23) if i not in (3, 8)]
    image = parts[1][0]["image"][1]  # record 5
    np.testing.assert_array_equal(image, images.eval_crop(images.decode(picture(5)), 16))


SCRIPT = """
import sys, time
sys.path.insert(0, {here!r})
import test_loader as t

if __name__ == "__main__":
    options = dict(batch_size=32, steps=10**6, seed=0, image_size=64, context_length=12)
    mix = t.mixture.parse_mix("a=1")
    stream = t.loader.train_batches(
        [t.Memory("a", 500)], mix, workers=2, tokenizer=t.TOKENIZER, **options
    )
    for step, batch in enumerate(stream):
        if step == 4:
            print("running", flush=True)
"""


def test_workers_and_shared_memory_go_when_the_trainer_is_killed(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(here=os.path.dirname(__file__)))
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert process.stdout.readline() == "running\n"
    alive = session(process.pid)
    assert len(alive) >= 3  # itself and two workers
    shared = {name for pid in alive for name in shared_memory(pid)}
    assert shared
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline and session(process.pid):
        time.sleep(0.1)
    assert session(process.pid) == []
    assert shared & set(os.listdir("/dev/shm")) == set()


def session(leader):
    """Processes of a session that are alive (not zombies)."""
    alive = []
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            alive.append(int(status.parent.name))
    return alive


def shared_memory(pid):
    """Names of the files in /dev/shm that a process has mapped: batches and semaphores."""
    maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
    return {
        line.split("/dev/shm/")[1].split()[0] for line in maps.splitlines() if "/dev/shm/" in line
    }
