"""Reads the tensors of a file of torch.save, without torch and without running anything.

Such a file is a zip: `<name>/data.pkl`, a pickle that describes the objects, and
`<name>/data/<key>`, the raw bytes of each storage. A pickle is a program, and Python's unpickler
runs it: it imports what it is told to and calls it. This reader interprets the handful of opcodes
that state dicts need, itself. A name in the file is compared with a short list and never imported;
nothing but the constructors below is called; no attribute of any object is set.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clipdg_jax.errors import UserError

# torch's storage classes: the type of the file's bytes, little-endian. bfloat16 is widened.
_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_LIMIT = 64 << 20  # of data.pkl, bytes: it holds names and shapes, not numbers


class _Refused(Exception):
    """Why a file is not read."""


@dataclasses.dataclass(frozen=True)
class _Name:
    """A global that the pickle names; only compared, never looked up."""

    path: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    kind: str
    data: bytes


def read(path: str | pathlib.Path) -> Any:
    """What was saved: dictionaries, lists, numbers, strings, and tensors as arrays.

    bfloat16 becomes float32; all other types stay.

    Raises:
      UserError: it is not in torch's zip format, it is damaged, or its pickle asks for anything but
        tensors and dictionaries. Nothing was run in any case.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except _Refused as error:
        raise UserError(f"{path}: {error}") from error
    # RuntimeError: a zip that is encrypted, or compressed in a way unknown.
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: is not in the zip format of torch.save, or is damaged ({error}); save the "
            "state_dict again, as safetensors best"
        ) from error
    # What a pickle that was tampered with can trip over in the interpreter and in numpy.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: its pickle is damaged ({type(error).__name__}: {error}); save the state_dict "
            "again, as safetensors best"
        ) from error


def _read(archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    found = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise _Refused("holds no data.pkl, so it is not a file of torch.save")
    prefix = found[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
        raise _Refused("was written on a big-endian machine; save it again on another")
    if f"{prefix}constants.pkl" in names:
        raise _Refused(
            "is a TorchScript program, as OpenAI's own files are; load it with open_clip and save "
            "its state_dict, as safetensors best"
        )
    # torch compresses nothing: what is compressed can be larger than its file by any factor.
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise _Refused("holds compressed members, which torch.save does not write")
    if archive.getinfo(found[0]).file_size > _LIMIT:
        raise _Refused("its pickle is larger than a state dict's can be")
    storages: dict[str, bytes] = {}

    def storage(key: str) -> bytes:
        if key not in storages:
            storages[key] = archive.read(f"{prefix}data/{key}")
        return storages[key]

    return _interpret(archive.read(found[0]), storage)


def _interpret(program: bytes, storage: Callable[[str], bytes]) -> Any:
    """Runs a pickle's stack machine, for the opcodes that state dicts are made of.

    The opcodes' meaning: https://docs.python.org/3/library/pickletools.html.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def pop(count: int) -> list[Any]:
        if len(stack) < count:
            raise ValueError("it takes more from its stack than is there")
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE"
                | "SHORT_BINUNICODE" | "BINUNICODE8"
            ):  # fmt: skip
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode.name[-1]))))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "SETITEM":
                key, value = pop(2)
                _plain(stack[-1], dict)[key] = value
            case "SETITEMS":
                items = since_mark()
                _plain(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
            case "APPEND":
                (value,) = pop(1)
                _plain(stack[-1], list).append(value)
            case "APPENDS":
                items = since_mark()
                _plain(stack[-1], list).extend(items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(str(argument).replace(" ", ".")))
            case "STACK_GLOBAL":
                module, name = pop(2)
                stack.append(_known(f"{module}.{name}"))
            case "BINPERSID":
                (identity,) = pop(1)
                stack.append(_storage(identity, storage))
            case "REDUCE":
                function, arguments = pop(2)
                stack.append(_call(function, arguments))
            case "BUILD":
                # Only state dicts' `_metadata`, the versions of torch's layers, comes this way.
                pop(1)
                _plain(stack[-1], dict)
            case _:
                raise _Refused(
                    f"its pickle holds {opcode.name}, which no state dict needs; nothing was run"
                )
    raise ValueError("it has no end")


def _plain(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} stands where a {kind.__name__} should")
    return value


def _known(path: str) -> _Name:
    """The global, if it is one of those that tensors and dictionaries are written with."""
    if path not in _CONSTRUCTORS and path.removeprefix("torch.") not in _STORAGES:
        raise _Refused(
            f"its pickle names {path}, which is neither a tensor nor a dictionary; nothing was "
            "run: save the state_dict alone, as safetensors best"
        )
    return _Name(path)


def _storage(identity: Any, storage: Callable[[str], bytes]) -> _Storage:
    """The storage of ("storage", class, key, device, number of elements)."""
    tag, kind, key, _, _ = _plain(identity, tuple)
    kind = _plain(kind, _Name).path.removeprefix("torch.")
    if _plain(tag, str) != "storage" or kind not in _STORAGES:
        raise ValueError(f"a {kind} is no storage")
    return _Storage(kind, storage(_plain(key, str)))


def _call(function: Any, arguments: Any) -> Any:
    path = _plain(function, _Name).path
    if path not in _CONSTRUCTORS:
        raise ValueError(f"{path} is called")
    return _CONSTRUCTORS[path](*_plain(arguments, tuple))


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """torch's tensor: a view of a storage. What follows the strides concerns training only."""
    storage = _plain(storage, _Storage)
    values = np.frombuffer(storage.data, _STORAGES[storage.kind])
    numbers = [_plain(n, int) for n in (offset, *_plain(size, tuple), *_plain(stride, tuple))]
    if len(size) != len(stride) or min(numbers) < 0 or math.prod(size) > len(values):
        raise ValueError(f"a tensor {list(size)} does not fit its storage of {len(values)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) and last >= len(values):
        raise ValueError(f"a tensor {list(size)} ends behind its storage of {len(values)}")
    view = np.lib.stride_tricks.as_strided(
        values[offset:], size, [step * values.itemsize for step in stride], writeable=False
    )
    if storage.kind == "BFloat16Storage":
        return (view.astype(np.uint32) << 16).view(np.float32)
    return view.copy()


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return _plain(data, np.ndarray)


def _ordered(items: Any = ()) -> dict:
    return dict(_plain(items, list) if items else ())


_CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
