"""Lists of keys and URLs: what they select is exactly what they name."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipdg_jax.data import engine, schema
from clipdg_jax.domains.curation import duplicates, listing
from clipdg_jax.errors import UserError
from tests.domains.curation import small_curation

RECORDS = [small_curation.Make()(i) for i in range(30)]
NONE = duplicates.Duplicates(None)
WANTED = (4, 7, 29)


def selected(listed, dropped=NONE, domain=""):
    judge = listing.ByList(listed, dropped, "listed", domain)
    found = list(judge(0, iter([*RECORDS, engine.Drop("no_image")])))
    assert found[-1] == engine.Drop("no_image")
    return {i: one for i, one in enumerate(found[:-1]) if not isinstance(one, engine.Drop)}, found


def write(path, entries, column):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"other": [0] * len(entries), column: entries}), path)
    elif path.suffix == ".csv":
        path.write_text(f"other,{column}\n" + "".join(f'0,"{e}"\n' for e in entries))
    else:
        path.write_text("\n".join(entries) + "\n\n")
    return path


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
@pytest.mark.parametrize("column", ["key", "URL"])
def test_each_kind_of_file_selects_what_it_names(tmp_path, suffix, column):
    entries = [RECORDS[i].key if column == "key" else small_curation.url(i) for i in WANTED]
    stray = "r/999" if column == "key" else small_curation.url(999)
    path = write(tmp_path / f"list{suffix}", [*entries, stray, entries[0]], column)
    listed = listing.read(path, tmp_path / "hashes.npy")
    assert (listed.entries, listed.repeated, listed.kinds) == (4, 1, (column.lower(),))
    found, outcomes = selected(listed)
    assert tuple(found) == WANTED
    assert all(found[i].record == RECORDS[i] for i in WANTED)
    assert outcomes.count(engine.Drop("not_listed")) == 27


def test_a_text_file_may_mix_keys_and_urls(tmp_path):
    path = write(tmp_path / "list.txt", [RECORDS[2].key, small_curation.url(9)], "")
    listed = listing.read(path, tmp_path / "hashes.npy")
    assert listed.kinds == ("key", "url")
    assert tuple(selected(listed)[0]) == (2, 9)


def test_duplicates_are_dropped_and_the_domain_is_set_where_it_is_told(tmp_path):
    path = write(tmp_path / "list.txt", [RECORDS[i].key for i in WANTED], "")
    listed = listing.read(path, tmp_path / "hashes.npy")
    small_curation.drop_list(tmp_path / "d.parquet", [(0, 7, RECORDS[7].key)])
    dropped = duplicates.Duplicates(tmp_path / "d.parquet")
    found, outcomes = selected(listed, dropped, "natural")
    assert tuple(found) == (4, 29)
    assert outcomes[7] == engine.Drop("duplicate")
    assert found[4].record == dataclasses.replace(
        RECORDS[4], domain="natural", meta={**RECORDS[4].meta, "true_domain": schema.DOMAINS[1]}
    )
    small_curation.drop_list(tmp_path / "d.parquet", [(0, 7, "r/008")])
    with pytest.raises(UserError, match="row 7 of shard 0 is 'r/008', but 'r/007' in the pool"):
        selected(listed, dropped)


def test_a_long_list_is_found_whole(tmp_path):
    keys = [f"k/{i}" for i in range(70_000)]  # More than are read at once.
    path = write(tmp_path / "list.txt", keys, "")
    listed = listing.read(path, tmp_path / "hashes.npy")
    assert listed.entries == 70_000
    assert np.all(np.diff(listed.load()) > 0)
    records = [schema.Record(key, b"") for key in (keys[0], keys[-1], "k/70000")]
    known, kinds = listed.load(), ("key",)
    found = [listing._listed(known, listing.hashes_of(record, kinds)) for record in records]
    assert [len(one) for one in found] == [1, 1, 0]


def test_lists_that_are_wrong_are_refused(tmp_path):
    hashes = tmp_path / "hashes.npy"
    with pytest.raises(UserError, match="does not exist"):
        listing.read(tmp_path / "none.txt", hashes)
    with pytest.raises(UserError, match="has no column key or url; it has other, name"):
        listing.read(write(tmp_path / "list.csv", ["a"], "name"), hashes)
    with pytest.raises(UserError, match="lists nothing"):
        listing.read(write(tmp_path / "list.txt", ["", "  "], ""), hashes)
    (tmp_path / "list.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        listing.read(tmp_path / "list.parquet", hashes)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="cannot be read"):
        listing.read(tmp_path / "bad.txt", hashes)
