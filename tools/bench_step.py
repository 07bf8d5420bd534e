"""How fast the training step is, in one process, on whatever device JAX finds.

    python -m tools.bench_step --variants=16,16+packed
    python -m tools.bench_step --dtype=bfloat16 --variants=1024+packed+dots,4096+packed+dots+scan

Each variant is a batch size and what differs from the plain step: `packed` captions, `dots` or
`full` rematerialisation, `scan` over the layers, `xla` kernels, `accumulate:N` parts. All are
compiled first, in `--compile_threads` threads; then, in turn, each makes `--warmup` steps and
`--rounds` rounds of `--steps` steps. The step is the one that pre-training runs, with its
optimiser; inputs are `bench_inputs`, on the device from the start.

Printed are milliseconds a step (median of the rounds, fastest and slowest), pairs a second,
floating-point operations a pair in closed form, their rate and its share of the rate at which the
device multiplies two square matrices of side `--matmul`, measured in the same process.
`--profile=N` lists the N kernels of the first variant that take most of the device's time; XLA's
fusions are named as in the program that XLA_FLAGS=--xla_dump_to=<folder> writes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags

from clipdg_jax import malloc
from clipdg_jax.errors import UserError
from clipdg_jax.jobs import pretrain
from clipdg_jax.training import sharding
from configs import mix
from tools import bench_inputs, cli

FLAGS = flags.FLAGS
REMATS = ("dots", "full")


def define_flags() -> None:
    """The command line's: tests import several tools into one process."""
    flags.DEFINE_string("model", "ViT-B-32", "Name of the model.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
    flags.DEFINE_list("variants", "16,16+packed", "What to time.")
    flags.DEFINE_integer("warmup", 1, "Untimed steps of a variant.", lower_bound=1)
    flags.DEFINE_integer("steps", 1, "Steps of a round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 4, "Rounds of a variant.", lower_bound=1)
    flags.DEFINE_integer("compile_threads", 1, "Variants compiled at a time.", lower_bound=1)
    flags.DEFINE_integer("matmul", 0, "Side of the matrices whose product is timed; 0: none.")
    flags.DEFINE_integer("encode", 0, "Images of a batch for the image tower alone; 0: none.")
    flags.DEFINE_integer("profile", 0, "Kernels to list that take most time; 0: no profile.")
    flags.DEFINE_string("out", "", "File that the results are added to, as JSON lines.")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A batch size and how the step is made."""

    text: str
    batch_size: int
    packed: bool = False
    remat: str = "none"
    scan: bool = False
    kernels: str = "auto"
    accumulate: int = 1

    @property
    def pack_rows(self) -> tuple[float, ...]:
        """`config.data.pack_rows` of such a run: pre-training's own, or none."""
        return tuple(mix.base().data.pack_rows) if self.packed else ()

    def config(self, model: str, dtype: str) -> ml_collections.ConfigDict:
        """The configuration of such a run."""
        config = mix.base()
        config.steps = 1000
        config.batch_size = self.batch_size
        config.accumulate = self.accumulate
        config.dtype = dtype
        config.model.name = model
        config.model.remat = self.remat
        config.model.scan_layers = self.scan
        config.model.kernels = self.kernels
        config.data.pack_rows = self.pack_rows
        return config


def parse(text: str) -> Variant:
    """The variant that `batch[+option]...` names. Raises UserError for what is none."""
    size, *options = text.split("+")
    fields: dict[str, Any] = {}
    for option in options:
        name, _, number = option.partition(":")
        if option in ("packed", "scan"):
            fields[option] = True
        elif option in REMATS:
            fields["remat"] = option
        elif option == "xla":
            fields["kernels"] = option
        elif name == "accumulate" and number.isdecimal():
            fields[name] = int(number)
        else:
            raise UserError(
                f"--variants: {text!r} has {option!r}; options are packed, {', '.join(REMATS)}, "
                "scan, xla and accumulate:N"
            )
    if not size.isdecimal() or not int(size):
        raise UserError(f"--variants: {text!r} does not begin with a batch size")
    return Variant(text, int(size), **fields)


class Bench:
    """A variant's step, compiled, with its batch; `time` runs it."""

    def __init__(self, variant: Variant, model: str, dtype: str):
        self.variant = variant
        self.planned = pretrain.plan(variant.config(model, dtype), jax.devices()[:1])
        text = self.planned.model.config.text
        size = variant.batch_size
        self._host = {
            "tokens": bench_inputs.tokens(size, 0, text.context_length, text.vocab_size),
            "valid": np.ones(size, bool),
            "source": np.zeros(size, np.int32),
            "index": np.arange(size),
        }
        # The images' bytes do not matter to what is compiled.
        side = self.planned.model.config.vision.image_size
        self._side = side
        fields = self._fields(np.broadcast_to(np.uint8(0), (size, side, side, 3)))
        rows = sharding.batch_sharding(self.planned.mesh)
        self._abstract = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=rows)
            for name, value in fields.items()
        }
        self.flops = pretrain.step_flops(self.planned, self._abstract)
        self.compile_seconds = 0.0
        self._batch: Any = None
        self._state: Any = None

    def _fields(self, image: np.ndarray) -> dict[str, np.ndarray]:
        batch = self._host | {"image": image}
        return pretrain.device_batch(batch, self.planned.layout, lambda rows: rows)

    def compile(self) -> Bench:
        start = time.perf_counter()
        step = jax.jit(self.planned.train_step(), donate_argnums=0)  # For its `lower`.
        self._step = step.lower(self.planned.abstract, self._abstract, {}).compile()
        self.compile_seconds = time.perf_counter() - start
        return self

    def temporary_bytes(self) -> int:
        """What the compiled step needs besides its arguments and results."""
        return self._step.memory_analysis().temp_size_in_bytes

    def counted(self) -> dict[str, float]:
        """FLOPs and bytes of the compiled step, as XLA counts them; a scan's body only once."""
        return self._step.cost_analysis()

    def put(self) -> None:
        """Makes the state and the batch, on the device."""
        images = bench_inputs.images(self.variant.batch_size, 0, self._side)
        self._batch = sharding.put_batch(self._fields(images), self.planned.mesh)
        self._state = self.planned.init()

    def drop(self) -> None:
        """Frees the device's memory."""
        self._batch = self._state = None

    def time(self, steps: int) -> float:
        """Seconds of so many steps together, on an idle device."""
        jax.block_until_ready(self._state)
        start = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch, {})
        loss = float(metrics["loss"])
        seconds = time.perf_counter() - start
        if not np.isfinite(loss):
            raise UserError(f"{self.variant.text}: the loss is {loss}")
        return seconds


def matmul_rate(side: int, dtype: str) -> float:
    """FLOP/s of the product of two random square matrices, the best of several tries."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (side, side), jnp.dtype(dtype)) for key in keys)
    product = jax.jit(jnp.matmul)
    count = 20 if side > 4096 else 2

    def once() -> float:
        start = time.perf_counter()
        for _ in range(count):
            c = product(a, b)
        c.block_until_ready()
        return 2 * side**3 * count / (time.perf_counter() - start)

    once()
    return max(once() for _ in range(3))


def encoding_rate(planned: pretrain.Plan, batch: int) -> float:
    """Images a second through the image tower, forward alone, bytes on the device."""
    model = planned.model
    params = jax.jit(model.init)(jax.random.key(0))
    images = jnp.asarray(bench_inputs.images(batch, 0, model.config.vision.image_size))
    encode = jax.jit(model.encode_image)
    encode(params, images).block_until_ready()

    def once() -> float:
        start = time.perf_counter()
        for _ in range(5):
            features = encode(params, images)
        features.block_until_ready()
        return 5 * batch / (time.perf_counter() - start)

    return statistics.median(once() for _ in range(3))


def run(bench: Bench, rate: float, out: Callable[[Any], None]) -> None:
    """Times a variant and prints its line; one that does not fit in memory says so."""
    try:
        bench.put()
        bench.time(FLAGS.warmup)
        steps = FLAGS.steps
        seconds = [bench.time(steps) / steps for _ in range(FLAGS.rounds)]
    except jax.errors.JaxRuntimeError as error:
        print(f"{bench.variant.text}: {str(error).splitlines()[0][:160]}", flush=True)
        bench.drop()
        return
    second = statistics.median(seconds)
    pairs = bench.variant.batch_size / second
    found = {
        "variant": bench.variant.text,
        "ms": [round(1e3 * s, 2) for s in sorted(seconds)],
        "pairs_per_second": round(pairs, 1),
        "gflop_per_pair": round(bench.flops / bench.variant.batch_size / 1e9, 3),
        "tflops": round(bench.flops / second / 1e12, 3),
        "compile_seconds": round(bench.compile_seconds, 1),
        "temporary_gib": round(bench.temporary_bytes() / 2**30, 2),
    }
    if rate:
        found["of_matmul"] = round(bench.flops / second / rate, 3)
    out(found)
    bench.drop()


def hottest(bench: Bench, count: int) -> list[dict[str, Any]]:
    """The kernels of a step that take most time on the device, all their runs together."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            bench.time(1)
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    on_device = [plane for plane in planes if plane.name.startswith("/device:")]
    spent: dict[str, list[float]] = {}
    for plane in on_device or planes:
        for line in plane.lines:
            if on_device and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                spent.setdefault(event.name, []).append(event.duration_ns)
    total = sum(map(sum, spent.values()))
    most = sorted(spent.items(), key=lambda item: -sum(item[1]))[:count]
    return [
        {
            "kernel": name[:90],
            "times": len(durations),
            "ms": round(sum(durations) / 1e6, 3),
            "share": round(sum(durations) / total, 4),
        }
        for name, durations in most
    ]


def main(argv: Sequence[str]) -> None:
    del argv
    malloc.keep_freed_memory()  # As every job does.

    def out(found: dict[str, Any]) -> None:
        line = json.dumps(found)
        print(line, flush=True)
        if FLAGS.out:
            with pathlib.Path(FLAGS.out).open("a") as file:
                print(line, file=file)

    out({"device": jax.devices()[0].device_kind, "jax": jax.__version__})
    rate = matmul_rate(FLAGS.matmul, FLAGS.dtype) if FLAGS.matmul else 0.0
    if rate:
        out({"matmul": FLAGS.matmul, "dtype": FLAGS.dtype, "tflops": round(rate / 1e12, 1)})
    make = functools.partial(Bench, model=FLAGS.model, dtype=FLAGS.dtype)
    benches = [make(parse(text)) for text in FLAGS.variants]
    with concurrent.futures.ThreadPoolExecutor(FLAGS.compile_threads) as pool:
        compiled = [pool.submit(bench.compile) for bench in benches]
        concurrent.futures.wait(compiled)
    for bench, future in zip(benches, compiled, strict=True):
        if future.exception():
            print(f"{bench.variant.text}: {str(future.exception())[:300]}", flush=True)
            continue
        run(bench, rate, out)
    if FLAGS.encode:
        images = encoding_rate(benches[0].planned, FLAGS.encode)
        out({"encode_batch": FLAGS.encode, "images_per_second": round(images, 1)})
    if FLAGS.profile:
        benches[0].put()
        benches[0].time(FLAGS.warmup)
        for item in hottest(benches[0], FLAGS.profile):
            out(item)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
