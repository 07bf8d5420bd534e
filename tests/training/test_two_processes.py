"""Two processes of four devices each do what one process with eight does."""

import socket
import subprocess
import sys
import textwrap

import numpy as np

from clipdg_jax.training import checkpoints, checksums
from tests import children

_CODE = """
    import sys
    import jax, jax.numpy as jnp, numpy as np, optax
    from clipdg_jax import errors
    from clipdg_jax.training import agreement, checkpoints, checksums, losses, sharding, stacking
    from clipdg_jax.training import step

    def init(key):
        a, b, c = jax.random.split(key, 3)
        blocks = 0.02 * jax.random.normal(c, (3, 512, 256))
        return stacking.stack({
            "image": 0.1 * jax.random.normal(a, (512, 128)),
            "text": 0.1 * jax.random.normal(b, (512, 128)),
            "logit_scale": jnp.asarray(2.0, jnp.float32),
            **{f"resblocks.{i}.weight": blocks[i] for i in range(3)},
        })

    def apply(params, image, tokens):
        for i in range(3):
            inner = image @ params[f"resblocks.{i}.weight"]
            image = image + jnp.tanh(inner) @ params[f"resblocks.{i}.weight"].T
        features = [image @ params["image"], tokens @ params["text"]]
        unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in features]
        return (*unit, jnp.exp(params["logit_scale"]))

    def batch(s):
        rng = np.random.default_rng(s)
        image = rng.normal(size=(32, 512)).astype(np.float32)
        return {"image": image, "tokens": image[:, ::-1].copy(), "valid": rng.random(32) < 0.8}

    def train(directory):
        mesh, tx, key = sharding.make_mesh(fsdp=8), optax.sgd(0.1), jax.random.key(0)
        objective = losses.contrastive_objective(apply, "clip")
        abstract = step.abstract_state(init, key, tx, mesh)
        state = step.init_state(init, key, tx, mesh)
        train_step = step.make_train_step(objective, tx, abstract, mesh)
        rows = np.arange(32).reshape(jax.process_count(), -1)[jax.process_index()]
        history = []
        for s in range(20):
            mine = {k: v[rows] for k, v in batch(s).items()}
            state, metrics = train_step(state, sharding.put_batch(mine, mesh), {})
            history.append(float(metrics["loss"]))
        sha = checksums.params_sha256(step.merged_params(state))
        store = checkpoints.Checkpoints(directory, identity={}, architecture={"a": 1}, keep=1)
        for s in (10, 20):
            store.save(s, state, {"by": jax.process_count()})
        assert store.steps() == [20]
        again, extra = store.restore(abstract)
        assert again["params"]["resblocks.*.weight"].sharding.spec == jax.P(None, "fsdp")
        assert checksums.params_sha256(step.merged_params(again)) == sha
        store.close()
        return history, sha
"""
_MAIN = """
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    largest, closed = agreement.Largest(), agreement.Largest()
    mine = [(3, 9, 4), (7, 1, 4)][jax.process_index()]
    assert [largest(value) for value in mine] == [7, 9, 4]
    closed.close()
    try:
        closed(1)
    except RuntimeError as error:
        assert "closed while waiting" in str(error)
    else:
        raise AssertionError("a closed agreement did not raise")
    history, sha = train(sys.argv[3])
    if jax.process_index() == 0:
        print(sha, *map(repr, history))
"""


def test_twenty_steps_and_a_checkpoint(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    code = textwrap.dedent(_CODE) + textwrap.dedent(_MAIN)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(i), str(tmp_path / "two")],
            env=children.environment(devices=4),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs[0][1] + outputs[1][1]
    sha, *history = outputs[0][0].split()[-21:]

    here: dict = {}
    exec(textwrap.dedent(_CODE), here)
    expected, _ = here["train"](tmp_path / "one")
    np.testing.assert_allclose(np.asarray(history, np.float64), expected, rtol=1e-6)
    assert expected[-1] < expected[0]

    loaded = checkpoints.load_params(tmp_path / "two")  # on one device
    assert (loaded.step, loaded.architecture) == (20, {"a": 1})
    assert checksums.params_sha256(loaded.params) == sha
