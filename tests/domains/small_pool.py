"""A dataset in memory whose records have keys and no pictures."""

import dataclasses

from clipdg_jax.data import schema, shards


@dataclasses.dataclass(frozen=True)
class SmallPool:
    size: int = 100
    name: str = "pool"
    fingerprint: str = "f00d"
    damaged: tuple[int, ...] = ()
    classes = ()
    tokenizer = None

    def __len__(self) -> int:
        return self.size

    def record(self, index: int) -> schema.Record:
        assert 0 <= index < self.size
        if index in self.damaged:
            raise shards.RecordError("damaged")
        return schema.Record(f"{self.name}/{index}", b"")
