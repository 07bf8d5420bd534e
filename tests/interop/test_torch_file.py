"""Files of torch.save: tensors come out right, and nothing else comes out at all."""

import pathlib
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest

from clipdg_jax.errors import UserError
from clipdg_jax.interop import torch_file

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def expected():
    with np.load(FIXTURES / "expected.npz") as arrays:
        return {k.removeprefix("tensors/"): v for k, v in arrays.items() if k[:8] == "tensors/"}


def test_every_kind_of_tensor_is_torchs(expected):
    found = torch_file.read(FIXTURES / "tensors.pt")
    tensors, (parameter, nothing, text) = found["nested"]
    assert (nothing, text) == (None, "text")
    np.testing.assert_array_equal(parameter, expected["parameter"])
    np.testing.assert_array_equal(found["shared"], expected["parameter"])
    assert len(tensors) == 9
    for name, value in tensors.items():
        np.testing.assert_array_equal(value.astype(np.float32), expected[name], err_msg=name)
        assert value.shape == expected[name].shape
    kinds = {name: value.dtype.str for name, value in tensors.items()}
    assert kinds["bfloat16"] == "<f4"
    assert (kinds["half"], kinds["double"], kinds["integers"]) == ("<f2", "<f8", "<i8")


def archive(path, program, members=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        for name, data in members:
            file.writestr(f"archive/{name}", data)
    return path


class Touch:
    """Unpickled, it creates a file: what an attacker would do, harmlessly."""

    def __init__(self, path, protocol):
        self.path, self.protocol = path, protocol

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


class Opener(Touch):
    def __reduce__(self):
        return open, (str(self.path), "w")


class Evaluated(Touch):
    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


def as_instance(path):
    """The oldest way to call something: INST, a class named and called by one opcode."""
    quoted = str(path).encode()
    return b"(S'" + quoted + b"'\nS'w'\nibuiltins\nopen\n."


def as_object(path):
    """OBJ: the class lies on the stack."""
    quoted = str(path).encode()
    return b"(cbuiltins\nopen\nS'" + quoted + b"'\nS'w'\no."


def in_a_state_dict(path):
    """A state dict like any other, with one value that is a program."""
    return pickle.dumps({"visual.proj": [1.0], "logit_scale": Touch(path, 2)}, protocol=2)


PROGRAMS = {
    "touch, protocol 2": lambda path: pickle.dumps(Touch(path, 2), protocol=2),
    "touch, protocol 4": lambda path: pickle.dumps(Touch(path, 4), protocol=4),
    "open": lambda path: pickle.dumps(Opener(path, 2), protocol=2),
    "eval": lambda path: pickle.dumps(Evaluated(path, 2), protocol=2),
    "INST": as_instance,
    "OBJ": as_object,
    "in a state dict": in_a_state_dict,
}


@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_pickle_that_runs_code_is_refused_and_nothing_ran(kind, tmp_path):
    ran = tmp_path / "ran"
    program = PROGRAMS[kind](ran)
    path = archive(tmp_path / "weights.pt", program)
    with pytest.raises(UserError, match=r"weights\.pt: its pickle .* nothing was run"):
        torch_file.read(path)
    assert not ran.exists()
    # The proof that there was something to refuse: Python's own unpickler runs it.
    result = pickle.loads(program)
    assert ran.exists()
    if hasattr(result, "close"):
        result.close()


def test_allowed_names_are_not_called_where_they_should_not_be(tmp_path):
    """A storage class is no constructor, and a constructor takes tensors' arguments only."""
    for program in (
        b"ctorch\nFloatStorage\n(K\x01tR.",
        b"ccollections\nOrderedDict\n(]K\x01atR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.",
        b"ctorch._utils\n_rebuild_parameter\n(K\x01tR.",
        b"}ccollections\nOrderedDict\nb}b.",
        b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        b"K\x01R.",
        b".",
        b"}",
        b"",
    ):
        path = archive(tmp_path / "x.pt", program)
        if program == b"}ccollections\nOrderedDict\nb}b.":
            # BUILD on a dictionary drops the state, whatever it is: no attribute is set.
            assert torch_file.read(path) == {}
            continue
        with pytest.raises(UserError, match="its pickle is damaged"):
            torch_file.read(path)


def tensor_program(size, stride, offset=0):
    """The pickle of one float tensor, as torch writes it."""

    def ints(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    identity = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    identity += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tail = ints(size) + ints(stride) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return rebuild + b"(" + identity + b"J" + struct.pack("<i", offset) + tail + b"tR."


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((5,), (1,), 0),
        ((2, 2), (4, 1), 0),
        ((4,), (1,), 1),
        ((4,), (1,), -1),
        ((2,), (-1,), 3),
        ((-1,), (1,), 0),
        ((1 << 30, 1 << 30), (0, 0), 0),
        ((2, 2), (1,), 0),
    ],
)
def test_a_tensor_does_not_reach_beyond_its_storage(size, stride, offset, tmp_path):
    storage = np.arange(4, dtype="<f4").tobytes()
    good = archive(tmp_path / "good.pt", tensor_program((2, 2), (1, 2)), [("data/0", storage)])
    np.testing.assert_array_equal(torch_file.read(good), [[0, 2], [1, 3]])
    bad = tensor_program(size, stride, offset)
    assert len(list(pickletools.genops(bad))) > 20  # a well-formed pickle
    with pytest.raises(UserError, match="its pickle is damaged"):
        torch_file.read(archive(tmp_path / "bad.pt", bad, [("data/0", storage)]))


def test_files_that_are_not_torchs_zip(tmp_path):
    whole = (FIXTURES / "tensors.pt").read_bytes()
    cases = {
        "cut.pt": (whole[: len(whole) // 2], "zip format of torch.save, or is damaged"),
        "legacy.pt": (pickle.dumps({"a": 1}), "zip format of torch.save"),
        "empty.pt": (b"", "zip format of torch.save"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            torch_file.read(tmp_path / name)
    other = tmp_path / "other.pt"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("readme.txt", "x")
    with pytest.raises(UserError, match=r"holds no data\.pkl"):
        torch_file.read(other)
    path = archive(tmp_path / "bomb.pt", b"}.", [("data/0", bytes(10**6))], zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed members"):
        torch_file.read(path)
    path = archive(tmp_path / "jit.pt", b"}.", [("constants.pkl", b")."), ("code/a.py", b"")])
    with pytest.raises(UserError, match="is a TorchScript program, as OpenAI's own files are"):
        torch_file.read(path)
