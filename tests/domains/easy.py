"""An easy case: line drawings as renditions, noise textures as natural images."""

import cv2
import numpy as np

from clipdg_jax.data import schema
from clipdg_jax.domains import examples
from tests.domains import renders

SIZE = 32


def drawing(rng: np.random.Generator) -> np.ndarray:
    """Eight lines on flat paper."""
    image = np.full((SIZE, SIZE, 3), rng.integers(120, 137, 3), np.uint8)
    for ends in rng.integers(0, SIZE, (8, 2, 2)).tolist():
        cv2.line(image, *ends, rng.integers(0, 256, 3).tolist(), 1)
    return image


def texture(rng: np.random.Generator) -> np.ndarray:
    """Blurred noise of the same mean colours."""
    noise = cv2.GaussianBlur(rng.normal(0, 80, (SIZE, SIZE, 3)), (0, 0), rng.uniform(0.5, 1.5))
    return np.clip(noise + rng.integers(120, 137, 3), 0, 255).astype(np.uint8)


def labelled(count: int, seed: int, damaged: int = 0) -> examples.Examples:
    """`count` of each in turn; then `damaged` records that are no images, labelled natural."""
    rng = np.random.default_rng(seed)
    pictures = [make(rng) for _ in range(count) for make in (texture, drawing)]
    data = [cv2.imencode(".png", picture)[1].tobytes() for picture in pictures]
    data += [b"no image"] * damaged
    domain = [0, 1] * count + [0] * damaged
    keys = tuple(f"easy/{seed}/{i}" for i in range(len(data)))
    records = tuple(schema.Record(key=key, image=image) for key, image in zip(keys, data))
    rows = np.arange(len(data))
    return examples.Examples(
        sources=(renders.Pictures(records),),
        source=np.zeros(len(data), np.int32),
        index=rows,
        domain=np.array(domain, np.int32),
        keys=keys,
    )


def accuracy(method, test: examples.Examples) -> float:
    """Share of the examples whose domain is the likelier one."""
    (inputs,) = test.batches(len(test))
    return float(np.mean(method.score(inputs).argmax(axis=1) == test.domain))
