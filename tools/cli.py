"""How every tool starts: flags in, one line for a user's mistake, exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags

from clipdg_jax import stopping
from clipdg_jax.data import tokenizer, writing
from clipdg_jax.errors import UserError


def run(main: Callable[[Sequence[str]], object], positional: int = 0) -> None:
    """Parses the flags and calls `main([program, *arguments])`.

    A UserError, an unknown flag, or more arguments than `positional` are one line on stderr and
    exit status 2.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            _refuse(f"{str(error).splitlines()[0]}; see --help")
        if len(rest) > 1 + positional:
            _refuse(f"{rest[1 + positional]!r} is not a flag; write --<flag>=<value>, see --help")
        return rest

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            _refuse(str(error))
        except stopping.Stopped as stopped:
            print(f"stopped: {stopped}; the same command again goes on", file=sys.stderr)
            sys.exit(stopping.EXIT_STATUS)
        except KeyboardInterrupt:
            print("interrupted; the same command again goes on from here", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=parse)


def define_writing_flags() -> None:
    """The flags that all tools share which write datasets."""
    flags.DEFINE_string("out", None, "Where to write.")
    flags.DEFINE_integer("processes", 0, "Worker processes; 0 works in this one.", lower_bound=0)
    flags.DEFINE_integer("process_index", 0, "This host's number.", lower_bound=0)
    flags.DEFINE_integer("process_count", 1, "Hosts that share the work.", lower_bound=1)
    flags.DEFINE_integer(
        "target_shard_bytes", writing.TARGET_SHARD_BYTES, "Aimed shard size.", lower_bound=1
    )
    flags.DEFINE_integer(
        "tokenizer_vocab",
        tokenizer.FULL_VOCABULARY,
        "Vocabulary of the captions' tokens; fewer than CLIP's for small models.",
    )


def _refuse(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
