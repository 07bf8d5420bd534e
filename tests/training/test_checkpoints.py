import json
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipdg_jax import errors
from clipdg_jax.training import checkpoints, checksums, sharding, step
from tests import children

TX = optax.adam(1e-3)
IDENTITY = {"seed": 0, "optim": {"lr": 1e-3, "betas": (0.9, 0.98)}}
ARCHITECTURE = {"vision": {"width": 8, "activation": "gelu"}, "embed_dim": 4}


def _init(key):
    a, b = jax.random.split(key)
    return {
        "visual.proj": jax.random.normal(a, (256, 512)),
        "text.bias": jax.random.normal(b, (7,)).astype(jnp.bfloat16),
        "logit_scale": jnp.asarray(2.6),
    }


def _mesh(devices, fsdp=1):
    return sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])


def _state(mesh, seed=0, trainable=""):
    key = jax.random.key(seed)
    state = step.init_state(_init, key, TX, mesh, trainable)
    moments = jax.tree.map(lambda x: x + jnp.asarray(0.5, x.dtype), state["opt"][0].mu)
    return state | {"opt": (state["opt"][0]._replace(mu=moments), *state["opt"][1:])}


def _abstract(mesh, trainable=""):
    return step.abstract_state(_init, jax.random.key(0), TX, mesh, trainable)


def _open(directory, identity=IDENTITY, architecture=ARCHITECTURE, keep=None):
    return checkpoints.Checkpoints(
        directory, identity=identity, architecture=architecture, keep=keep
    )


def _host(tree):
    # A real copy: on the CPU np.asarray may share memory with a buffer about to be donated.
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def _assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One checkpoint, of step 3, with a frozen leaf; written from 8 devices, fsdp 4."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    state = _state(_mesh(8, 4), trainable="visual|logit")
    store = _open(directory)
    store.save(3, state, {"masked": 5})
    store.close()
    return directory, _host(state)


@pytest.mark.parametrize(("devices", "fsdp"), [(8, 4), (4, 2), (1, 1)])
def test_a_state_comes_back_bit_for_bit_on_other_devices(saved, devices, fsdp):
    directory, expected = saved
    abstract = _abstract(_mesh(devices, fsdp), "visual|logit")
    state, extra = _open(directory).restore(abstract)
    assert extra == {"masked": 5}
    _assert_same_bits(state, expected)
    assert jax.tree.map(lambda x: x.sharding, state) == step.state_shardings(abstract)


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
    mesh = _mesh(8)
    state = _state(mesh)
    expected = _host(state)
    store = _open(tmp_path)
    zero = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    store.save(1, state)
    jax.block_until_ready(zero(state))
    store.wait()
    _assert_same_bits(store.restore(_abstract(mesh))[0], expected)


def test_steps_keep_and_order(tmp_path):
    mesh = _mesh(1)
    state = _state(mesh)
    everything, two = _open(tmp_path / "all"), _open(tmp_path / "two", keep=2)
    for s in (1, 2, 5):
        assert everything.save(s, state, {"s": s})
        assert two.save(s, state)
    assert not two.save(5, state)
    with pytest.raises(ValueError, match="earlier"):
        two.save(4, state)
    assert (everything.steps(), two.steps()) == ([1, 2, 5], [2, 5])
    assert (everything.latest(), _open(tmp_path / "none").latest()) == (5, None)
    with pytest.raises(errors.UserError, match="no checkpoint of step 3; use 1, 2, 5"):
        everything.restore(_abstract(mesh), 3)
    assert everything.restore(_abstract(mesh), 2)[1] == {"s": 2}
    with pytest.raises(errors.UserError, match="use 1 or more"):
        _open(tmp_path / "zero", keep=0)


def test_digests_tell_checkpoints_apart(tmp_path):
    mesh = _mesh(1)
    for name, seeds in (("a", (0, 1)), ("b", (0, 2))):
        store = _open(tmp_path / name)
        for s, seed in enumerate(seeds):
            store.save(s + 1, _state(mesh, seed))
        store.close()
    a, b = (checkpoints.saved(tmp_path / name) for name in "ab")
    assert list(a) == list(b) == [1, 2]
    assert a[1] == b[1]
    assert len({a[1], a[2], b[2]}) == 3


def test_parameters_can_be_loaded_without_the_run(saved):
    directory, state = saved
    for mesh in (None, _mesh(4, 4)):
        loaded = checkpoints.load_params(directory, mesh=mesh)
        assert (loaded.architecture, loaded.step) == (ARCHITECTURE, 3)
        _assert_same_bits(loaded.params, step.merged_params(state))
    assert not loaded.params["visual.proj"].is_fully_replicated
    with pytest.raises(errors.UserError, match="holds no checkpoint"):
        checkpoints.load_params(directory / "nowhere")


@pytest.mark.parametrize(
    ("identity", "architecture", "message"),
    [
        (IDENTITY, {**ARCHITECTURE, "embed_dim": 8}, "architecture.embed_dim is 4 there and 8"),
        (
            IDENTITY,
            {**ARCHITECTURE, "vision": {"width": 8, "activation": "quick_gelu"}},
            'architecture.vision.activation is "gelu" there and "quick_gelu" here',
        ),
        ({"seed": 1}, ARCHITECTURE, "identity.seed is 0 there and 1 here"),
    ],
)
def test_another_model_or_run_is_refused_by_field(saved, identity, architecture, message):
    with pytest.raises(errors.UserError, match=message):
        _open(saved[0], identity, architecture).restore(_abstract(_mesh(1), "visual|logit"))


def test_other_shapes_and_dtypes_are_refused_by_name(saved):
    abstract = _abstract(_mesh(1), "visual|logit")
    for leaf, said in (
        (jax.ShapeDtypeStruct((512, 256), jnp.float32), r"float32\[512, 256\]"),
        (jax.ShapeDtypeStruct((256, 512), jnp.bfloat16), r"bfloat16\[256, 512\]"),
    ):
        wrong = abstract | {"params": abstract["params"] | {"visual.proj": leaf}}
        there = r'arrays.visual.proj is "float32\[256, 512\]" there'
        with pytest.raises(errors.UserError, match=f"{there}.*{said}"):
            _open(saved[0]).restore(wrong)


def test_an_array_changed_on_disk_is_named(tmp_path):
    """A change that TensorStore cannot see: another checkpoint's arrays under this one's sums."""
    mesh = _mesh(1)
    store = _open(tmp_path)
    store.save(1, _state(mesh, seed=0))
    store.save(2, _state(mesh, seed=1))
    store.wait()
    subprocess.run(["rm", "-rf", str(tmp_path / "2/params")], check=True)
    subprocess.run(["cp", "-r", str(tmp_path / "1/params"), str(tmp_path / "2/params")], check=True)
    with pytest.raises(errors.UserError, match=r"/2: damaged, \S+ and 1 more differs"):
        store.restore(_abstract(mesh))
    store.restore(_abstract(mesh), 1)


def test_meta_is_guarded_too(tmp_path):
    store = _open(tmp_path)
    store.save(1, _state(_mesh(1)))
    store.wait()
    file = tmp_path / "1/meta/metadata"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(meta | {"step": 2}))
    with pytest.raises(errors.UserError, match="does not match its own checksum"):
        store.restore(_abstract(_mesh(1)))


_CHILD = """
    import os, resource, signal, sys
    import jax, jax.numpy as jnp, optax
    from clipdg_jax import errors
    from clipdg_jax.training import checkpoints, sharding, step
    mesh = sharding.make_mesh()
    init = lambda key: {"w": jax.random.normal(key, (int(sys.argv[2]), 1024))}
    tx = optax.sgd(1.0)
    state = step.init_state(init, jax.random.key(0), tx, mesh)
    store = checkpoints.Checkpoints(sys.argv[1], identity={}, architecture={})
"""


def _child(body, *args):
    """Runs Python code after `_CHILD` in a process of its own, on one device."""
    code = textwrap.dedent(_CHILD) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=children.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_flipped_bits_never_pass(tmp_path):
    """One bit in every file of a checkpoint in turn: refused by name, or without effect."""
    # In a process of its own: Orbax leaves coroutines behind when it cannot read a file.
    done = _child(
        """
        import pathlib
        import numpy as np
        expected = np.array(state["params"]["w"])
        store.save(1, state)
        store.wait()
        abstract = step.abstract_state(init, jax.random.key(0), tx, mesh)
        rng = np.random.default_rng(0)
        for file in sorted(pathlib.Path(sys.argv[1], "1").rglob("*")):
            if not file.is_file() or not file.stat().st_size:
                continue
            good = file.read_bytes()
            bad = bytearray(good)
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
            file.write_bytes(bytes(bad))
            try:
                got, _ = store.restore(abstract)
                assert np.array(got["params"]["w"]).tobytes() == expected.tobytes(), file
                assert int(got["step"]) == 0
                print("harmless", file.name)
            except errors.UserError as error:
                print("refused", file.name, str(error))
            file.write_bytes(good)
        store.restore(abstract)
        """,
        tmp_path,
        100,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip().splitlines()
    assert all(line.startswith(("harmless ", "refused ")) for line in said)
    refused = [line for line in said if line.startswith("refused ")]
    assert all(f"{tmp_path}/1: damaged, " in line for line in refused)
    large = max((tmp_path / "1").rglob("*"), key=lambda p: p.stat().st_size)
    assert any(large.name in line for line in refused)
    assert any("its meta/ does not match" in line or "its meta/ cannot" in line for line in refused)


def test_killed_in_mid_save(tmp_path):
    done = _child(
        """
        store.save(1, state)
        store.wait()
        store.save(2, state)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
        20_000,  # 80 MB: still being written when the signal comes
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["1"]
    assert [p for p in tmp_path.iterdir() if "tmp" in p.name]
    assert checkpoints.load_params(tmp_path).step == 1

    store = checkpoints.Checkpoints(tmp_path, identity={}, architecture={})
    assert store.steps() == [1]
    mesh, tx = _mesh(1), optax.sgd(1.0)
    init, key = lambda key: {"w": jax.random.normal(key, (20_000, 1024))}, jax.random.key(0)
    restored, _ = store.restore(step.abstract_state(init, key, tx, mesh))
    assert store.save(2, restored)
    assert store.steps() == [1, 2]
    assert not [p for p in tmp_path.iterdir() if "tmp" in p.name]
    assert checksums.params_sha256(restored["params"]) == checksums.params_sha256(
        checkpoints.load_params(tmp_path).params
    )


def test_no_space_is_one_clear_line(tmp_path):
    """A limit on the size of files stands in for a full disk: the write fails in the middle."""
    done = _child(
        """
        store.save(1, state)
        store.wait()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            store.save(2, state)
            store.wait()
        except errors.UserError as error:
            print(error)
        """,
        tmp_path,
        1_000,
    )
    said = done.stdout.strip().splitlines()
    assert len(said) == 1, done.stdout + done.stderr
    assert str(tmp_path) in said[0]
    assert "no space left for a checkpoint (step 1 is kept)" in said[0]
    assert checkpoints.load_params(tmp_path).step == 1
