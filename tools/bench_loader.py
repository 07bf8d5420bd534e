"""How fast the loader is: beside open_clip's, beside decoding alone, and on a slow disk.

    python -m tools.bench_loader
    python -m tools.bench_loader --peer_python=/path/to/venv/bin/python
    python -m tools.bench_loader --pixels=512
    python -m tools.bench_loader --records=10000 --shard_bytes=1
    python -m tools.bench_loader --rounds=10 --batches=157
    python -m tools.bench_loader --slow_disk_ms=5

Draws pictures of the demo world at `--pixels` (three natural to one drawn), writes them as JPEG at
quality 95, repeated to `--records`, both as a dataset of ours and as webdataset tars, in a
temporary folder. Our first batch is timed from opening the dataset on; in the fourth command it has
10 000 shards. The resident memory of our workers is printed after each turn; in the fifth they make
more than 100 000 records. Then, in turns, `--rounds` times, batches of each loader are timed, with
`--workers` worker processes each, to 224 px; batches that were ready before a turn began are taken
first, untimed. Printed are images a second and CPU milliseconds an image (the median of the turns,
lowest and highest), and the ratios to decoding and to open_clip, turn by turn. On a machine that
others use too, the CPU time, which counts all processes of a loader until its queues are full
again, is the steadier figure.

- ours: `loader.train_batches`, uint8 images (the model normalises them on the device), with the
  tokens that were stored at import.
- open_clip: its own webdataset loader (see `bench_loader_peer`), float32 images, captions tokenised
  while loading.
- decode: simplejpeg alone, in as many processes, nothing kept.
- slow disk: `--slow_disk_ms` are slept at every read call of a dataset, record by record
  and with block shuffle, beside the same without the sleep.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import simplejpeg
from absl import flags

from clipdg_jax import errors
from clipdg_jax.data import dataset, engine, loader, mixture, schema, tokenizer, writing
from tools import bench_pictures, cli

FLAGS = flags.FLAGS
flags.DEFINE_integer("records", 4096, "Records in each copy of the data.", lower_bound=256)
flags.DEFINE_integer(
    "shard_bytes", writing.TARGET_SHARD_BYTES, "Aimed size of our shards.", lower_bound=1
)
flags.DEFINE_integer("pictures", 256, "Distinct pictures among them.", lower_bound=1)
flags.DEFINE_integer("pixels", 256, "Height and width of a picture.", lower_bound=1)
flags.DEFINE_integer("workers", 2, "Worker processes of each loader.", lower_bound=1)
flags.DEFINE_integer("threads", 1, "Threads in each of our workers.", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "Rows of a batch.", lower_bound=1)
flags.DEFINE_integer("batches", 16, "Timed batches of a turn.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Turns of each loader.", lower_bound=1)
flags.DEFINE_string("peer_python", "", "A Python with open_clip; empty leaves it out.")
flags.DEFINE_float("slow_disk_ms", 0.0, "Time the simulated slow disk instead.", lower_bound=0)
flags.DEFINE_integer("shuffle_block", 64, "Records read together, on the slow disk.")
flags.DEFINE_integer("shuffle_window", 16, "Blocks shuffled together, on the slow disk.")

SIZE = 224
_TARS = 8
# Batches of a turn that were made before it began: the loaders' queues hold a few per worker.
_READY_PER_WORKER = 6

# Loads as many batches, untimed and then timed; returns the seconds of the latter.
Turn = Callable[[int, int], float]


class SlowDisk:
    """A dataset every read call of which takes `delay` seconds longer."""

    def __init__(self, inner: dataset.Dataset, delay: float) -> None:
        self._inner = inner
        self._delay = delay
        self.name, self.classes = inner.name, inner.classes
        self.tokenizer, self.fingerprint = inner.tokenizer, inner.fingerprint

    def __len__(self) -> int:
        return len(self._inner)

    def record(self, index: int) -> schema.Record:
        time.sleep(self._delay)
        return self._inner.record(index)

    def records(self, start: int, stop: int) -> list:
        time.sleep(self._delay)
        return self._inner.records(start, stop)


class _Maker:
    """The shard engine's function: from record numbers to records."""

    def __init__(self, pictures: Sequence[bench_pictures.Picture]) -> None:
        self._pictures = pictures

    def __call__(self, numbers: Iterator[int]) -> Iterator[schema.Record]:
        tokens = tokenizer.get_tokenizer()
        for number in numbers:
            image, caption = self._pictures[number % len(self._pictures)]
            (ids,) = tokens.encode([caption])
            yield schema.Record(f"{number:08d}", image, caption, ids)


def write_dataset(out: pathlib.Path, pictures: Sequence[bench_pictures.Picture], records: int):
    return writing.write_dataset(
        out,
        engine.index_shards(records, 1024),
        _Maker(pictures),
        config={},
        tokenizer=tokenizer.get_tokenizer().hash,
        target_shard_bytes=FLAGS.shard_bytes,
    )


@contextlib.contextmanager
def our_turns(source, **options) -> Iterator[Turn]:
    with loader.train_batches(
        [source],
        mixture.parse_mix("photos=1"),
        **{
            "batch_size": FLAGS.batch_size,
            "steps": 10**6,
            "seed": 0,
            "image_size": SIZE,
            "context_length": 77,
            "tokenizer": tokenizer.get_tokenizer(),
            "workers": FLAGS.workers,
            "threads": FLAGS.threads,
            "prefetch": 2,
            **options,
        },
    ) as batches:
        next(batches)

        def turn(skip: int, count: int) -> float:
            for _ in range(skip):
                next(batches)
            start = time.perf_counter()
            for _ in range(count):
                next(batches)
            return time.perf_counter() - start

        yield turn


@contextlib.contextmanager
def peer_turns(tars: str) -> Iterator[Turn]:
    script = pathlib.Path(__file__).with_name("bench_loader_peer.py")
    # -P: the folder of the script has an `inspect` that is not the standard library's.
    command = [FLAGS.peer_python, "-P", str(script), f"--tars={tars}", f"--size={SIZE}"]
    command += [f"--batch_size={FLAGS.batch_size}", f"--workers={FLAGS.workers}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        ask, answers = process.stdin, process.stdout
        assert ask is not None
        assert answers is not None
        first = answers.readline()
        if not first:
            raise errors.UserError(f"--peer_python: {FLAGS.peer_python} failed, see above")
        print("peer:", json.loads(first))

        def turn(skip: int, count: int) -> float:
            ask.write(f"{skip} {count}\n")
            ask.flush()
            return float(answers.readline())

        yield turn
        ask.close()


def _decode_all(images: Sequence[bytes], count: int) -> float:
    start = time.perf_counter()
    for number in range(count):
        simplejpeg.decode_jpeg(images[number % len(images)])
    return time.perf_counter() - start


@contextlib.contextmanager
def decode_turns(images: Sequence[bytes]) -> Iterator[Turn]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(FLAGS.workers, context) as pool:

        def turn(skip: int, count: int) -> float:
            each = count * FLAGS.batch_size // FLAGS.workers
            for images_each in (skip * FLAGS.batch_size // FLAGS.workers, each):
                jobs = [pool.submit(_decode_all, images, images_each) for _ in range(FLAGS.workers)]
                seconds = max(job.result() for job in jobs)
            return seconds

        turn(0, 1)  # starts the processes
        yield turn


def cpu_seconds() -> float:
    """CPU time that this process and all below it have used so far."""
    ticks, parents = {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            parents[int(path.parent.name)] = int(fields[1])
            ticks[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks[pid] for pid in ours) / os.sysconf("SC_CLK_TCK")


def resident_mib(pids: Sequence[int]) -> float:
    """Resident memory of these processes, in MiB."""
    pages = sum(int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def settle() -> float:
    """Waits until the loaders' queues are full and their processes idle; CPU seconds so far."""
    used = cpu_seconds()
    while True:
        time.sleep(0.5)
        before, used = used, cpu_seconds()
        if used - before < 0.05:
            return used


def measure(turns: dict[str, Turn], *references: str) -> None:
    """Times the loaders in turns and prints the rates, and the ratios to the `references`."""
    ready = _READY_PER_WORKER * FLAGS.workers
    rates: dict[str, list[float]] = {name: [] for name in turns}
    costs: dict[str, list[float]] = {name: [] for name in turns}
    used = settle()
    for _ in range(FLAGS.rounds):
        for name, turn in turns.items():
            rates[name].append(FLAGS.batches * FLAGS.batch_size / turn(ready, FLAGS.batches))
            before, used = used, settle()
            made = (ready + FLAGS.batches) * FLAGS.batch_size
            costs[name].append(1000 * (used - before) / made)
    _table("images a second", rates, references, "8.0f")
    _table("CPU ms an image", costs, references, "8.2f")


def _table(
    title: str, values: dict[str, list[float]], references: Sequence[str], form: str
) -> None:
    print(f"\n{title:36s}{'median':>8s}{'low':>8s}{'high':>8s}")
    for name, each in values.items():
        print(f"{name:36s}{_spread(each, form)}")
    for name, reference in itertools.product(values, references):
        if name != reference:
            pairs = zip(values[name], values[reference], strict=True)
            ratios = [mine / theirs for mine, theirs in pairs]
            print(f"{name + ' / ' + reference:36s}{_spread(ratios, '8.2f')}")


def _spread(values: Sequence[float], form: str) -> str:
    shown = (statistics.median(values), min(values), max(values))
    return "".join(format(value, form) for value in shown)


def main(_: Sequence[str]) -> None:
    print(
        f"{FLAGS.records} records of {FLAGS.pictures} demo pictures, "
        f"JPEG {FLAGS.pixels} px, quality 95; {FLAGS.workers} workers, "
        f"batches of {FLAGS.batch_size}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        pictures = bench_pictures.draw(FLAGS.pictures, FLAGS.pixels)
        size = statistics.mean(len(image) for image, _ in pictures)
        print(f"mean {size / 1000:.1f} kB an image")
        source = write_dataset(folder / "photos", pictures, FLAGS.records)
        enter = stack.enter_context
        if FLAGS.slow_disk_ms:
            slow = SlowDisk(source, FLAGS.slow_disk_ms / 1000)
            blocks = {
                "shuffle_block": FLAGS.shuffle_block,
                "shuffle_window": FLAGS.shuffle_window,
            }
            turns = {
                "local": enter(our_turns(source)),
                "slow, record by record": enter(our_turns(slow)),
                "slow, in blocks": enter(our_turns(slow, **blocks)),
            }
            measure(turns, "local")
            return
        start = time.perf_counter()
        ours = enter(our_turns(dataset.open_dataset(folder / "photos")))
        seconds = time.perf_counter() - start
        print(f"our first batch after {seconds:.2f} s; {len(source.manifest.shards)} shards")
        workers = [child.pid or 0 for child in multiprocessing.active_children()]
        memory: list[str] = []

        def watched(skip: int, count: int) -> float:
            taken = ours(skip, count)
            memory.append(f"{resident_mib(workers):.0f}")
            return taken

        turns = {
            "ours": watched,
            "decode": enter(decode_turns([image for image, _ in pictures])),
        }
        if FLAGS.peer_python:
            bench_pictures.write_tars(folder / "tars", pictures, _TARS, FLAGS.records)
            names = f"{folder}/tars/{{00000..{_TARS - 1:05d}}}.tar"  # webdataset's way
            turns["open_clip"] = enter(peer_turns(names))
        measure(turns, "decode", *(["open_clip"] if FLAGS.peer_python else []))
        print(f"our workers, resident MiB after each turn: {' '.join(memory)}")


if __name__ == "__main__":
    cli.run(main)
