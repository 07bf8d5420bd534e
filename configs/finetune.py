"""Fine-tunes a CLIP by methods that protect what it learned before, and compares them.

    python -m clipdg_jax.main --config=configs/finetune.py:compare          # all, on the demo
    python -m clipdg_jax.main --config=configs/finetune.py:l2               # one method
    python -m clipdg_jax.main --config=configs/finetune.py:full,l2+wise_ft,lora+kd
    python -m clipdg_jax.main --config=configs/finetune.py:compare,pacs
    python -m clipdg_jax.main --config=configs/finetune.py:compare,imagenet --config.dry_run=True

The argument is `[methods][,preset]`: methods separated by commas, or `compare` for all (also where
none is named).

Methods: zero_shot (no training), linear_probe, full, lp_ft, l1 and l2 (penalty on the distance of
the weights), kd (of the outputs), lora, flyp (contrastive, with prompts), rehearsal (replays the
pre-training mix), wise_ft (interpolation with the pre-trained weights); or several joined by +,
such as l2+wise_ft. Coefficients are chosen on in-distribution validation images.

Presets:
  demo       from `runs/mix`, which is made if missing, on 600 images of a narrow natural source of
             the demo world; out of distribution: natural images of other conditions, renditions.
             Fine-tuning all of it gains 4 points in distribution and loses 13 outside; `compare`
             takes a quarter of an hour on two cores for each seed.
  pacs       from `runs/mix-pacs`: photo -> art_painting, cartoon, sketch.
  imagenet   ViT-B/16 on `data/imagenet/train`; the suite `data/imagenet` has the test set `val`,
             and V2, R, A, Sketch and ObjectNet as far as they are there.
  domainnet  ViT-B/16, real -> the suite `data/domainnet`: clipart, infograph, painting, sketch,
             quickdraw.
"""

import dataclasses

import ml_collections
from ml_collections.config_dict import placeholder

from clipdg_jax.data import demo as demo_world
from clipdg_jax.finetuning import methods

COMPARE = "compare"
DATA = ("demo", "pacs", "imagenet", "domainnet")
# Arguments that show what can be given.
PRESETS = (COMPARE, "full,l2+wise_ft,lora+kd", "pacs", "lora,imagenet", "rehearsal,domainnet")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    names, preset = _parse(argument or "")
    made = {"demo": demo, "pacs": pacs, "imagenet": imagenet, "domainnet": domainnet}
    config = made[preset]()
    config.methods = ",".join(names) or config.methods
    return config


def base() -> ml_collections.ConfigDict:
    """Every field, at WiSE-FT's setting where it has one."""
    config = ml_collections.ConfigDict()
    config.job = "finetune"
    config.inputs = ()  # Configs whose runs make what is missing, in this order.
    config.methods = ",".join(methods.METHODS)
    config.seeds = (0,)  # Each trains and chooses for itself.
    config.checkpoint = ""  # A run's workdir, or its checkpoints/ directory.
    config.steps = 0  # Length: steps, else epochs.
    config.epochs = 10
    config.batch_size = 512  # Labelled images, over all devices.
    config.dtype = "bfloat16"  # Of the computation; parameters are float32.

    config.data = ml_collections.ConfigDict()
    config.data.root = "data"
    config.data.train = ""  # Dataset of labelled images.
    config.data.examples = 0  # How many of them, drawn by the seed; 0: all.
    config.data.validation = ""  # Dataset of the same distribution; "": held out of `train`.
    config.data.holdout = 0.02  # That share of it.
    config.data.suite = ""  # The test sets.
    config.data.inside = ""  # Comma-separated test sets of the training's distribution.
    config.data.outside = ""  # The others; "": all others.
    config.data.missing = "error"  # error | skip: what a test set that cannot be opened means.
    config.data.crop_scale = (0.9, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.workers = 8
    config.data.threads = 2
    config.data.prefetch = 4
    config.data.demo = ml_collections.ConfigDict()  # The world of what is made; {}: nothing.
    config.data.narrow = ml_collections.ConfigDict()  # What to make of it when missing.

    config.assumed = ml_collections.ConfigDict()  # For dry runs, which open no data.
    config.assumed.records = 0
    config.assumed.classes = 0

    config.model = ml_collections.ConfigDict()  # What the checkpoint's must be.
    config.model.name = "ViT-B-16"
    config.model.activation = placeholder(str)
    config.model.remat = "none"
    config.model.scan_layers = False
    config.model.vision = ml_collections.ConfigDict({"image_size": placeholder(int)})

    config.optim = ml_collections.ConfigDict()
    config.optim.lr = 3e-5
    config.optim.warmup = 500
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.1
    config.optim.clip = 1.0

    for name, section in methods.defaults().items():
        config[name] = ml_collections.ConfigDict(dict(section))

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 512
    config.eval.workers = 8

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # -1: all devices that fsdp leaves.
    config.mesh.fsdp = 1

    config.log_every = 50
    config.checkpoint_every = 1000
    config.deterministic = False
    config.dry_run = False
    return config


def demo() -> ml_collections.ConfigDict:
    config = base()
    config.inputs = ("configs/mix.py",)
    config.checkpoint = "runs/mix"
    config.batch_size = 32
    config.epochs = 8
    config.dtype = "float32"
    config.data.root = "data/demo"
    config.data.train = "narrow/train"
    config.data.examples = 600
    config.data.validation = "narrow/validation"
    config.data.suite = "narrow"
    config.data.inside = demo_world.NARROW
    config.data.workers = 0
    config.data.demo = ml_collections.ConfigDict(dataclasses.asdict(demo_world.DemoSpec()))
    config.data.narrow = ml_collections.ConfigDict(dataclasses.asdict(demo_world.NarrowSpec()))
    config.assumed.records = config.data.narrow.train
    config.assumed.classes = len(demo_world.CLASSES)
    config.model.name = "tiny"
    config.optim.lr = 2e-4
    config.optim.warmup = 15
    config.eval.batch_size = 128
    config.eval.workers = 0
    config.log_every = 10
    config.checkpoint_every = 50
    config.lora.matrices = r"^visual\."
    return config


def pacs() -> ml_collections.ConfigDict:
    config = demo()
    config.inputs = ()
    config.checkpoint = "runs/mix-pacs"
    config.data.root = "data"
    config.data.train = "pacs/photo"
    config.data.examples = 0
    config.data.validation = ""
    config.data.holdout = 0.2
    config.data.suite = "pacs"
    config.data.inside = "photo"
    config.data.demo = ml_collections.ConfigDict()
    config.data.narrow = ml_collections.ConfigDict()
    config.assumed.records = 668
    config.assumed.classes = 7
    config.model.name = "tiny-64"
    return config


def imagenet() -> ml_collections.ConfigDict:
    return _large("imagenet/train", "imagenet", "val", records=1_281_167, classes=1000)


def domainnet() -> ml_collections.ConfigDict:
    return _large("domainnet/real", "domainnet", "real", records=120_906, classes=345)


def _large(
    train: str, suite: str, inside: str, *, records: int, classes: int
) -> ml_collections.ConfigDict:
    config = base()
    config.checkpoint = "checkpoints/ViT-B-16"
    config.data.train = train
    config.data.suite = suite
    config.data.inside = inside
    config.assumed.records = records
    config.assumed.classes = classes
    return config


def _parse(argument: str) -> tuple[list[str], str]:
    words = [word for word in argument.split(",") if word]
    preset = words.pop() if words and words[-1] in DATA else "demo"
    for word in words:
        unknown = [name for name in word.split("+") if name not in methods.METHODS]
        if unknown and word != COMPARE:
            raise ValueError(
                f"finetune.py: {unknown[0]!r} is neither a method ({', '.join(methods.METHODS)}), "
                f"nor {COMPARE}, nor a preset ({', '.join(DATA)}, given last)"
            )
    names = [n for word in words for n in (methods.METHODS if word == COMPARE else (word,))]
    return list(dict.fromkeys(names)), preset
