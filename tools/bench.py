"""How fast the project is: counts that do not depend on a clock, then the clock, beside open_clip.

    make bench                # without torch; five minutes on two cores
    make bench PEERS=1        # open_clip too, in its own environment
    python -m tools.bench --parts=counts,step --peer_python=.venv-parity/bin/python

Parts:
- counts: floating-point operations of a training pair and of a zero-shot head, with and without
  packing, in closed form and as XLA counts the unrolled step; memory of the loss at a batch of
  16 384, some captions at a time and all at once.
- step: training steps of `--model` at `--batch_size`, a caption a row and packed (`bench_step`),
  and open_clip's (`bench_step_peer`), in turns, on the same inputs and as many threads. First steps
  are left out. On a GPU, which two processes cannot share, one after the other, in bfloat16 with
  open_clip's compiled, at each its `--gpu_variants` and `--gpu_peer_batch`.
- loader: JPEGs to batches (`bench_loader`), beside decoding alone and open_clip's pipeline.
- filter: tars sorted into datasets (`bench_filter`), beside a copy loop.

Ratios are taken round by round; the median is printed with the lowest and the highest.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from clipdg_jax import errors, malloc
from clipdg_jax.data import imagenet, packing, tokenizer
from clipdg_jax.evaluation import embedding, prompts
from clipdg_jax.models import config as model_config
from clipdg_jax.models import flops
from clipdg_jax.training import losses
from tools import bench_inputs, bench_step, cli

FLAGS = flags.FLAGS
PARTS = ("counts", "step", "loader", "filter")
# Threads that wait for work, spinning, have gone to sleep by then.
_SETTLE_SECONDS = 0.5


def define_flags() -> None:
    """The command line's, and those of `bench_step`."""
    bench_step.define_flags()
    flags.DEFINE_list("parts", list(PARTS), "What to run.")
    flags.DEFINE_integer("batch_size", 16, "Pairs of a step on the CPU.", lower_bound=1)
    flags.DEFINE_string(
        "peer_python", "", "A Python with torch and open_clip; empty leaves it out."
    )
    flags.DEFINE_integer("head_classes", 50, "Classes of the zero-shot head; ImageNet has 1000.")
    flags.DEFINE_list(
        "gpu_variants", "4096+packed+dots,3072+dots", "What `bench_step` times on a GPU."
    )
    flags.DEFINE_integer("gpu_peer_batch", 2048, "Pairs of open_clip's step on a GPU.")


def counts() -> None:
    """Prints what can be counted."""
    config = model_config.PRESETS[FLAGS.model]
    size = 4096
    tokens = bench_inputs.tokens(size, 0, config.text.context_length, config.text.vocab_size)
    lengths = tokens.argmax(axis=1) + 1
    layout = packing.layout(
        size, 1, config.text.context_length, bench_step.parse(f"{size}+packed").pack_rows
    )
    packed = packing.pack(tokens, layout)
    rows, columns = packed["tokens"].shape
    *_, fewest = packing.assign(lengths, columns)
    plain = flops.train_flops_per_pair(config)
    fewer = flops.train_flops_per_pair(config, columns, rows / size)
    say("captions", f"{lengths.mean():.1f} tokens of {config.text.context_length} on average")
    say(
        "packing",
        f"{size} captions in {fewest} rows of {columns}, {lengths.sum() / (fewest * columns):.3f} "
        f"of their slots used; in the {rows} compiled for, {lengths.sum() / (rows * columns):.3f}",
    )
    say(
        "training, a pair",
        f"{plain / 1e9:.2f} GFLOP unpacked, {fewer / 1e9:.2f} packed: x{fewer / plain:.3f}",
    )
    head(config)
    loss_memory(16_384, config.embed_dim)


def head(config: model_config.ClipConfig) -> None:
    """Prints the FLOPs of a zero-shot head of the first classes of ImageNet and 80 templates."""
    length = config.text.context_length
    names = list(imagenet.names().values())[: FLAGS.head_classes]
    tokens = tokenizer.get_tokenizer(config.text.vocab_size)
    ids = tokens(prompts.fill(imagenet.templates(), names), length)
    _, parts = embedding.pack_prompts(ids, 1, 512)
    rows, columns = parts[0]["tokens"].shape
    share = len(parts) * rows / len(ids)
    plain = flops.forward_flops_text(config) * len(ids)
    fewer = flops.forward_flops_text(config, columns, share) * len(ids)
    say(
        f"head, {len(names)} x {len(imagenet.templates())}",
        f"{plain / 1e12:.2f} TFLOP unpacked, {fewer / 1e12:.2f} packed: /{plain / fewer:.2f}",
    )


def loss_memory(batch: int, width: int) -> None:
    """Prints the temporary memory of the loss and its gradient, in chunks and at once."""
    found = {}
    chunk = losses.COLUMNS
    try:
        for losses.COLUMNS in (chunk, batch):
            step = jax.jit(jax.grad(lambda *inputs: losses.clip_loss(*inputs)[0], (0, 1, 2)))
            shapes = [((batch, width), jnp.float32)] * 2 + [((), jnp.float32), ((batch,), bool)]
            lowered = step.lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
            analysis = lowered.compile().memory_analysis()
            found[losses.COLUMNS] = analysis.temp_size_in_bytes / 2**20
    finally:
        losses.COLUMNS = chunk
    in_chunks, at_once = found.values()
    say(
        f"loss, batch {batch}",
        f"{in_chunks:.0f} MiB of temporary memory in chunks of {chunk}, {at_once:.0f} at once "
        f"({jax.default_backend()})",
    )


def step() -> None:
    """Times training steps, in turns."""
    texts = [f"{FLAGS.batch_size}", f"{FLAGS.batch_size}+packed"]
    benches = [
        bench_step.Bench(bench_step.parse(text), FLAGS.model, FLAGS.dtype).compile()
        for text in texts
    ]
    with contextlib.ExitStack() as stack:
        turns: dict[str, Callable[[int], float]] = {}
        for bench in benches:
            bench.put()
            turns["ours, packed" if bench.variant.packed else "ours"] = bench.time
        if FLAGS.peer_python:
            turns["open_clip"] = stack.enter_context(peer())
        for turn in turns.values():
            turn(FLAGS.warmup)
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for round_ in range(FLAGS.rounds):
            for name in list(turns)[:: -1 if round_ % 2 else 1]:
                time.sleep(_SETTLE_SECONDS)
                seconds[name].append(turns[name](FLAGS.steps) / FLAGS.steps)
    for bench, name in zip(benches, turns, strict=False):
        per_pair = bench.flops / FLAGS.batch_size
        xla = bench.counted()
        say(
            f"{name}: a pair",
            f"{per_pair / 1e9:.2f} GFLOP; {xla['flops'] / FLAGS.batch_size / 1e9:.2f}, and "
            f"{xla['bytes accessed'] / FLAGS.batch_size / 1e9:.2f} GB moved, as XLA counts; "
            f"compiled in {bench.compile_seconds:.0f} s",
        )
    for name, each in seconds.items():
        pairs = FLAGS.batch_size / statistics.median(each)
        say(name, f"{pairs:.2f} pairs/s; {spread([1e3 * s for s in each], '.0f')} ms a step")
    reference = "open_clip" if FLAGS.peer_python else "ours"
    for name, each in seconds.items():
        if name != reference:
            ratios = [r / s for r, s in zip(seconds[reference], each, strict=True)]
            say(f"{name} / {reference}", f"{spread(ratios, '.2f')} times as fast")


@contextlib.contextmanager
def peer() -> Iterator[Callable[[int], float]]:
    """open_clip's steps, in a process of its own."""
    threads = len(os.sched_getaffinity(0))
    command = [FLAGS.peer_python, "-m", "tools.bench_step_peer", "--serve", f"--threads={threads}"]
    command += [f"--model={FLAGS.model}", f"--batch_size={FLAGS.batch_size}", "--warmup=1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        ask, answers = process.stdin, process.stdout
        assert ask is not None
        assert answers is not None
        if not answers.readline():
            raise errors.UserError(f"--peer_python: {FLAGS.peer_python} failed, see above")

        def turn(steps: int) -> float:
            ask.write(f"{steps}\n")
            ask.flush()
            return float(answers.readline())

        yield turn
        ask.close()


def step_on_gpu() -> None:
    """Times ours and then open_clip's, each in a process that has the GPU to itself."""
    variants = ",".join(FLAGS.gpu_variants)
    options = ["--dtype=bfloat16", "--matmul=8192", "--encode=4096", "--steps=3"]
    options += [f"--model={FLAGS.model}", f"--variants={variants}", "--compile_threads=4"]
    call(sys.executable, "tools.bench_step", *options)
    if FLAGS.peer_python:
        options = [f"--model={FLAGS.model}", f"--batch_size={FLAGS.gpu_peer_batch}"]
        call(FLAGS.peer_python, "tools.bench_step_peer", *options, "--amp", "--compile")


def call(python: str, module: str, *options: str) -> None:
    """Runs a module and shows what it prints; UserError where it fails."""
    if subprocess.run([python, "-m", module, *options], check=False).returncode:
        raise errors.UserError(f"{module}: failed, see above")


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the lowest and highest in brackets."""
    shown = [format(v, form) for v in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def say(what: str, found: str) -> None:
    print(f"{what:24s} {found}", flush=True)


def has_gpu() -> bool:
    """Asked without JAX, which would take the GPU's memory from the processes that need it."""
    with contextlib.suppress(OSError):
        return subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode == 0
    return False


def main(argv: Sequence[str]) -> None:
    del argv
    malloc.keep_freed_memory()  # As every job does.
    unknown = sorted(set(FLAGS.parts) - set(PARTS))
    if unknown:
        raise errors.UserError(f"--parts: no {unknown[0]!r}; there are {', '.join(PARTS)}")
    gpu = has_gpu()
    if gpu:
        jax.config.update("jax_platforms", "cpu")
    model = next(
        (
            line.partition(":")[2].strip()
            for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    say("machine", f"{len(os.sched_getaffinity(0))} cores, {model}; load {os.getloadavg()[0]:.1f}")
    say("jax", f"{jax.__version__}, numpy {np.__version__}")
    if not FLAGS.peer_python:
        say("open_clip", "left out; `make bench PEERS=1` runs it in its own environment")
    start = time.perf_counter()
    own = [f"--peer_python={FLAGS.peer_python}"]
    small = ["--records=2048", "--pictures=64", "--rounds=3", "--batches=8"]
    parts = {
        "counts": counts,
        "step": step_on_gpu if gpu else step,
        "loader": lambda: call(sys.executable, "tools.bench_loader", *small, *own),
        "filter": lambda: call(sys.executable, "tools.bench_filter", "--shards=12"),
    }
    for name in FLAGS.parts:
        print(f"\n# {name}", flush=True)
        parts[name]()
    say("\nseconds in all", f"{time.perf_counter() - start:.0f}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
