"""What a run tells about itself: `metrics.jsonl`, TensorBoard, a progress bar."""

import json
import math
import pathlib
import sys
from collections.abc import Mapping

import jax
import numpy as np
import tensorboardX
import tqdm

from clipdg_jax import errors

# Dense bf16 peak of one device, FLOP/s, from the vendors' data sheets; keys are parts of
# `jax.Device.device_kind`, the more specific ones first.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "V100": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 123e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak dense bf16 FLOP/s of a device, or None where it is not known (a CPU)."""
    return next((peak for kind, peak in PEAK_FLOPS.items() if kind in device.device_kind), None)


class MetricLog:
    """Writes metrics on process 0 and nothing elsewhere.

    On resume, lines past the checkpoint are cut from `metrics.jsonl` and TensorBoard is told to
    forget them, so that each step appears once.

    Args:
      directory: the run's directory.
      start: the step that the run (re)starts from; later lines are dropped.
      steps: the step at which it will end, for the progress bar.
    """

    def __init__(self, directory: pathlib.Path, start: int, steps: int):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._path = directory / "metrics.jsonl"
        cut_back(self._path, start)
        self._file = self._path.open("a", buffering=1)
        self._board = tensorboardX.SummaryWriter(
            str(directory), purge_step=start + 1 if start else None
        )
        self._bar = tqdm.tqdm(
            total=steps,
            initial=start,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Appends one line for `step` and the same scalars to TensorBoard."""
        if not self._active:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise errors.UserError(
                f"{self._path}: {error.strerror}; free some space and run the same command again"
            ) from error
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Adds a grid of images, uint8 [n, h, w, 3], to TensorBoard."""
        if self._active and len(images):
            self._board.add_image(name, image_grid(images), step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """Adds a text (Markdown) to TensorBoard."""
        if self._active:
            self._board.add_text(name, text, step)

    def progress(self, step: int, note: str = "") -> None:
        """Moves the progress bar to `step`."""
        if self._active:
            self._bar.update(step - self._bar.n)
            if note:
                self._bar.set_postfix_str(note, refresh=False)

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._active:
            self._bar.close()
            self._board.close()
            self._file.close()


def cut_back(path: pathlib.Path, step: int) -> list[dict[str, float]]:
    """Drops the lines of a metrics file past `step`, and a half-written last one.

    Returns:
      The lines kept, parsed.
    """
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            break  # Cut off by a kill; nothing after it can be older.
        if values["step"] > step:
            break
        kept.append(values)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(values) + "\n" for values in kept))
    temporary.replace(path)
    return kept


def read(directory: pathlib.Path) -> list[dict[str, float]]:
    """All lines of a run's `metrics.jsonl`."""
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def image_grid(images: np.ndarray, gap: int = 2) -> np.ndarray:
    """Tiles uint8 images [n, h, w, 3] into one near-square picture with white gaps."""
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid
