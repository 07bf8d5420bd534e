"""A dataset in memory whose records hold small pictures, each of its own colour."""

import dataclasses
import io

from PIL import Image

from clipdg_jax.data import schema, shards


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (index % 256, 100, index // 256)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Photos:
    size: int = 30
    name: str = "photos"
    fingerprint: str = "beef"
    images: tuple[tuple[int, bytes], ...] = ()
    damaged: tuple[int, ...] = ()
    classes = ()
    tokenizer = None

    def __len__(self) -> int:
        return self.size

    def record(self, index: int) -> schema.Record:
        if index in self.damaged:
            raise shards.RecordError("damaged")
        return schema.Record(f"photos/{index}", dict(self.images).get(index) or png(index))
