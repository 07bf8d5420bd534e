"""Tables of keys that are not to be drawn."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdg_jax.domains import exclusion
from clipdg_jax.errors import UserError
from tests.domains import small_datasets
from tests.domains.small_pool import SmallPool


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """30 records r/000 to r/029 in shards."""
    return small_datasets.write(tmp_path_factory.mktemp("d") / "pool", 30)


def table(path, keys, metadata=None):
    made = pa.table({"key": pa.array(keys, pa.string())})
    pq.write_table(made.replace_schema_metadata(metadata), path)
    return path


def read_counting(path, source, monkeypatch):
    """The keys, and how many records were read to know them."""
    seen = []
    record = type(source).record
    with monkeypatch.context() as patched:
        patched.setattr(type(source), "record", lambda self, i: seen.append(i) or record(self, i))
        return exclusion.read(path, source), len(seen)


def test_keys_of_the_dataset_are_found_among_others(source, tmp_path, monkeypatch):
    path = table(tmp_path / "t", ["r/003", "elsewhere", "r/017"])
    found, read = read_counting(path, source, monkeypatch)
    assert (found, read) == ({"r/003", "r/017"}, 30)
    pool = SmallPool(10, damaged=(2,))
    assert exclusion.read(table(tmp_path / "p", ["pool/2", "pool/9"]), pool) == {"pool/9"}


def test_a_table_that_names_the_dataset_is_believed(source, tmp_path, monkeypatch):
    keys = {"r/001", "r/005"}
    for pool, expected in ((source.fingerprint, 0), ("another", 6)):  # up to r/005
        path = table(tmp_path / "t", [*keys], {"pool": pool})
        found, read = read_counting(path, source, monkeypatch)
        assert (found, read) == (keys, expected)


def test_nothing_to_exclude_is_fine(source, tmp_path):
    assert exclusion.read(table(tmp_path / "t", []), source) == frozenset()


def test_what_is_no_such_table_is_one_line(source, tmp_path):
    with pytest.raises(UserError, match=r"t: none of its 2 keys is of pool; give the table"):
        exclusion.read(table(tmp_path / "t", ["a", "b"]), source)
    pq.write_table(pa.table({"name": ["r/001"]}), tmp_path / "other")
    (tmp_path / "text").write_text("key")
    for name in ("other", "text", "missing"):
        with pytest.raises(UserError, match=f"{name}: cannot be read as keys") as refused:
            exclusion.read(tmp_path / name, source)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"missing: cannot be read .*configs/dedup\.py"):
        exclusion.fingerprint(tmp_path / "missing")
    assert exclusion.fingerprint(tmp_path / "text") != exclusion.fingerprint(tmp_path / "other")
