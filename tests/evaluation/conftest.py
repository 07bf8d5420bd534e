import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from clipdg_jax.data import dataset, schema, shards


@pytest.fixture
def write_dataset():
    """Writes `n` noise images with labels 0, 1, 2, 0, ... as a dataset of one shard."""

    def write(path: pathlib.Path, n: int = 5, classes=("cat", "dog", "owl"), seed: int = 0):
        path.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        writer = shards.ShardWriter(path / schema.shard_name(path.name, "test", 0, 1))
        for i in range(n):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(file, "PNG")
            label = i % len(classes) if classes else -1
            writer.write(
                schema.encode(schema.Record(f"{path.name}/{i}", file.getvalue(), label=label))
            )
        info = writer.close()
        dataset.Manifest(
            name=path.name, split="test", shards=(info,), classes=tuple(classes), seen=n
        ).save(path)

    return write
