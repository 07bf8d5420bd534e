"""Records that are never drawn as labels, such as duplicates."""

import pyarrow as pa
import pyarrow.parquet as pq

from clipdg_jax.data import schema
from clipdg_jax.domains import labels
from clipdg_jax.jobs import classify
from tests.domains import records
from tests.jobs import small_classifiers


def test_excluded_records_are_never_labels(tmp_path):
    keys = [f"r/{i}" for i in range(300)]
    pool = records.Records(
        tuple(schema.Record(key, b"", domain=schema.DOMAINS[i % 3]) for i, key in enumerate(keys))
    )
    path = tmp_path / "duplicates.parquet"
    config = small_classifiers.config(
        tmp_path, "keywords", **{"data.exclude": str(path), "labels.test": 60}
    )

    def read(out):
        """Labels with these records excluded, and what identifies the run."""
        pq.write_table(pa.table({"key": out}), path)
        found = classify._read_labels(config, [pool], tmp_path)
        assert not set(found.examples.keys) & set(out)
        return found.provenance, classify._fingerprints(config, {"pool": pool})

    told, first = read(keys[:20])
    assert (told["records"], told["excluded"]) == (280, 0)  # Of 300; they are not drawn at all.
    with labels.Store(tmp_path / classify.SIMULATED) as store:
        (draw,) = store.draws()
        assert (draw.size, draw.population) == (280, 280)
        assert not {label.key for label in store.labels()} & set(keys[:20])
    # Of a store that is given, their labels are left out.
    config.labels.path = str(tmp_path / classify.SIMULATED)
    told, second = read(keys[15:30])
    assert (told["records"], told["excluded"]) == (270, 10)
    assert first["exclude"] != second["exclude"]
    # And so are the records' own domains.
    config.labels.path, config.labels.simulate = "", {}
    told, _ = read(keys[:30])
    assert (told["records"], told["excluded"]) == (270, 30)
