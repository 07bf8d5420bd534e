"""A folder of pictures by domain and class, imported, trained on and evaluated."""

import subprocess
import sys

import cv2
import numpy as np

from clipdg_jax.jobs import pretrain
from tests.jobs import small_runs

DOMAINS = {"photo": "natural", "art_painting": "rendition", "cartoon": "rendition"}
DOMAINS["sketch"] = "rendition"


def _write_pictures(root, per_class: int) -> None:
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        for name in ("dog", "giraffe"):
            (root / domain / name).mkdir(parents=True)
            for i in range(per_class):
                small = rng.integers(0, 255, (9, 11, 3), np.uint8)
                picture = cv2.resize(small, (99, 81), interpolation=cv2.INTER_CUBIC)
                assert cv2.imwrite(str(root / domain / name / f"{i}.jpg"), picture)


def test_import_train_evaluate(tmp_path):
    _write_pictures(tmp_path / "pictures", per_class=10)
    command = [
        *(sys.executable, "-m", "tools.import_folder", f"--folder={tmp_path / 'pictures'}"),
        *(f"--out={tmp_path / 'data' / 'pacs'}", "--layout=domain/class", "--holdout=0.4"),
        "--domains=" + ",".join(f"{name}:{domain}" for name, domain in DOMAINS.items()),
        "--tokenizer_vocab=2048",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=small_runs.REPO, check=False)
    assert done.returncode == 0, done.stderr
    config = small_runs.load_config("mix").get_config("pacs")
    config.data.root = str(tmp_path / "data")
    config.update({"steps": 2, "batch_size": 16, "eval_every": 0, "images_every": 0})
    config.data.workers = 0
    config.model.vision.stem_blocks = 0  # Compiles in half the time.
    pretrain.run(config, tmp_path / "run")
    found = small_runs.results(tmp_path / "run")["zero_shot"]["pacs"]
    assert {name: values["domain"] for name, values in found.items()} == DOMAINS
    held_out = sum(values["n"] for values in found.values())
    assert 0 < held_out < 80
    trained = small_runs.losses(tmp_path / "run")
    assert sorted(trained) == [2]
