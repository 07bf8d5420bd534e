r"""Imports webdataset tars (img2dataset, LAION, DataComp) as a dataset.

    python -m tools.import_webdataset --tars=laion/ --out=data/pool
    python -m tools.import_webdataset --tars='laion/*/*.tar' --out=data/natural \
        --domain=natural --processes=16

Image bytes are kept as they are. Every image is decoded once, to be sure that it can be, and
every caption is tokenised once. What is not written is counted, by reason: `duplicate_key` (a
key for the second time in one tar), `no_image`, `corrupt_image`, `no_caption`, and `truncated`
(cut off with its tar). The same command again goes on where a killed one stopped.

On several hosts, start it on each with --process_index=i --process_count=n over one file system.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from absl import flags

from clipdg_jax.data import dataset, engine, images, pool, schema, tars, tokenizer, writing
from clipdg_jax.errors import UserError
from tools import cli, summary


@dataclasses.dataclass(frozen=True)
class ImportTar:
    """The engine's function: from the samples of one tar to records and drops."""

    domain: str
    keep_uncaptioned: bool
    vocab_size: int

    def __call__(self, samples: Iterator[tars.TarSample]) -> Iterator[schema.Record | engine.Drop]:
        outcomes = pool.ToRecords(self.keep_uncaptioned)(samples)
        return pool.Tokenise(self.vocab_size)(map(self._check, outcomes))

    def _check(self, outcome: schema.Record | engine.Drop) -> schema.Record | engine.Drop:
        if isinstance(outcome, engine.Drop):
            return outcome
        try:
            images.decode(outcome.image)
        except images.ImageError:
            return engine.Drop("corrupt_image")
        return dataclasses.replace(outcome, domain=self.domain)


def import_tars(
    pattern: str,
    out: str,
    *,
    domain: str = "",
    keep_uncaptioned: bool = False,
    vocab_size: int = tokenizer.FULL_VOCABULARY,
    target_shard_bytes: int = writing.TARGET_SHARD_BYTES,
    processes: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> dataset.Dataset | None:
    """Imports the tars of a directory or glob to the dataset `out`.

    Args:
        pattern: directory or glob of tars.
        out: directory of the new dataset.
        domain: domain of all images, or "" when it is not known.
        keep_uncaptioned: whether images without a caption are kept.
        vocab_size: vocabulary of the tokeniser; see `tokenizer.get_tokenizer`.
        target_shard_bytes, processes, process_index, process_count: see
            `writing.write_dataset`.

    Returns the dataset (None on hosts other than the first). Raises UserError.
    """
    source = tars.open_tars(pattern)
    return writing.write_dataset(
        out,
        source.shards(),
        ImportTar(domain, keep_uncaptioned, vocab_size),
        config={
            "tool": "import_webdataset",
            "domain": domain,
            "keep_uncaptioned": keep_uncaptioned,
            "tokenizer_vocab": vocab_size,
            "tars": source.fingerprint,
        },
        domain=domain,
        tokenizer=tokenizer.get_tokenizer(vocab_size).hash,
        parents=[{"name": source.name, "fingerprint": source.fingerprint}],
        target_shard_bytes=target_shard_bytes,
        processes=processes,
        process_index=process_index,
        process_count=process_count,
        say=print,
    )


def main(argv: Sequence[str]) -> None:
    """Runs the import that the flags ask for and prints what became of every sample."""
    del argv
    values = flags.FLAGS
    for name in ("tars", "out"):
        if not values[name].value:
            raise UserError(f"--{name}: is missing; see --help")
    imported = import_tars(
        values.tars,
        values.out,
        domain=values.domain,
        keep_uncaptioned=values.keep_uncaptioned,
        vocab_size=values.tokenizer_vocab,
        target_shard_bytes=values.target_shard_bytes,
        processes=values.processes,
        process_index=values.process_index,
        process_count=values.process_count,
    )
    if imported is not None:
        print(summary.counts(imported))


if __name__ == "__main__":
    flags.DEFINE_string("tars", None, "Directory of .tar files, or a glob.")
    flags.DEFINE_enum("domain", "", ["", *schema.DOMAINS], "Domain of all images, if known.")
    flags.DEFINE_bool("keep_uncaptioned", False, "Keep images without a caption.")
    cli.define_writing_flags()
    cli.run(main)
