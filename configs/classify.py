"""Fits and calibrates classifiers that tell natural images from renditions.

    python -m clipdg_jax.main --config=configs/classify.py              # the fine-tuned encoder
    python -m clipdg_jax.main --config=configs/classify.py:gram         # another method
    python -m clipdg_jax.main --config=configs/classify.py:compare      # all of them: the table
    python -m clipdg_jax.main --config=configs/classify.py:demo         # what the main job needs
    python -m clipdg_jax.main --config=configs/classify.py:paper --config.dry_run=True

The argument is a method, or a preset.

Methods: finetune (CLIP encoder + linear readout, all of it trained), frozen (the readout alone),
centroid (nearest class centroid), gram (Gram matrices), amplitude (Fourier amplitude spectrum),
style (contrastive style descriptors), keywords (words of the caption), ensemble (of any of them).

Presets, beside the methods, which are fitted on a demo pool of their own:
  demo     what `configs/curate.py` sorts the pool of the main job with: an ensemble of Gram
           matrices of random filters, amplitude spectrum and keywords, labels from the deduplicated
           pool. A minute on two cores.
  compare  every method, and their table, curves and contact sheets.
  pacs     every method on PACS, photo as natural and the rest as renditions, cross-fitted in five
           folds, then fitted on all of it; data/pacs is made by `python -m tools.import_folder`.
  paper    the ViT-L/14 of the domain study: 13 000 labels, batch 256, 50 epochs, for 4 devices.

Labels come from a label store (`python -m tools.label`), a Parquet or CSV file of keys and
domains, or, where `labels.path` is empty, from the records themselves. The demo pool is labelled by
simulated annotators (`labels.simulate`).
"""

import dataclasses

import ml_collections

from clipdg_jax.data import demo as demo_world
from clipdg_jax.domains.methods import keywords

METHODS = ("finetune", "frozen", "centroid", "gram", "amplitude", "style", "keywords", "ensemble")
PRESETS = ("demo", *METHODS, "compare", "pacs", "paper")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    argument = argument or "finetune"
    if argument not in PRESETS:
        raise ValueError(f"classify.py: {argument!r} is none of {', '.join(PRESETS)}")
    if argument in ("demo", "pacs", "paper"):
        return {"demo": demo, "pacs": pacs, "paper": paper}[argument]()
    config = pool()
    config.method = argument
    return config


def base() -> ml_collections.ConfigDict:
    """Every field, at the domain study's setting where it has one."""
    config = ml_collections.ConfigDict()
    config.job = "classify"
    config.method = "finetune"  # Or compare: all of `compare`.
    config.compare = ",".join(METHODS)
    config.seed = 0
    config.dtype = "bfloat16"  # Of the encoder's computation.

    config.data = ml_collections.ConfigDict()
    config.data.root = "data"
    config.data.datasets = "pool"  # Comma-separated; what the labels are of.
    config.data.test_sets = ""  # Comma-separated datasets to score and tell of besides.
    config.data.exclude = ""  # Parquet of keys, as the job dedup writes it: never drawn as labels.
    config.data.workers = 8
    config.data.threads = 2
    config.data.prefetch = 4
    config.data.demo = ml_collections.ConfigDict()  # What to make when missing; {}: nothing.

    config.labels = ml_collections.ConfigDict()
    config.labels.path = "labels.sqlite"  # "": each record's own domain.
    config.labels.validation = 3000  # How many calibrate; from random draws only.
    config.labels.test = 3000
    config.labels.min_annotators = 1  # Of each label that calibrates or tests.
    config.labels.folds = 0  # Cross-fitting instead of one split; 0: off.
    config.labels.simulate = ml_collections.ConfigDict()  # Demo annotators; {}: none.

    config.calibration = ml_collections.ConfigDict()
    config.calibration.target = 0.98  # Precision of each decider.
    config.calibration.rule = "lower_bound"  # point | lower_bound
    config.calibration.min_support = 50

    config.encoder = ml_collections.ConfigDict()
    config.encoder.checkpoint = ""  # A run to take the CLIP of; "": scratch.
    config.encoder.model = ml_collections.ConfigDict({"name": "ViT-L-14"})

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1

    config.finetune = _learning()
    config.finetune.mode = "full"
    config.finetune.label_smoothing = 0.0
    config.finetune.mixup = 0.0  # Images mixed in pairs at shares of Beta(mixup, mixup); 0: none.
    config.frozen = _learning()
    config.frozen.mode = "frozen"
    config.frozen.label_smoothing = 0.0
    config.frozen.mixup = 0.0
    config.centroid = ml_collections.ConfigDict({"scale": 100.0})  # Of the cosines.
    config.gram = ml_collections.ConfigDict()
    config.gram.weights = ""  # VGG-19 or ResNet-50 as safetensors; "": the encoder.
    config.gram.image_size = 0  # 0: the network's own.
    config.gram.layers = ""  # Of the encoder; "": its stem, or two of its blocks.
    config.gram.channels = 64  # Layers of more are projected onto so many.
    config.gram.l2 = 1e-2
    config.amplitude = ml_collections.ConfigDict()
    config.amplitude.image_size = 224
    config.amplitude.window = "none"  # none | hann
    config.amplitude.colour = "rgb"  # rgb | luminance
    config.amplitude.bins = 0  # Rings; 0: every frequency.
    config.amplitude.l2 = 1e-1
    config.keywords = ml_collections.ConfigDict(keywords.WORDS)
    config.keywords.learn_words = 0  # Besides the lists, the most telling of the captions' words.
    config.keywords.l2 = 1e-3
    config.style = _learning()
    config.style.mode = "full"
    config.style.weights = ""  # The released descriptor as safetensors; "": the encoder.
    config.style.temperature = 0.1
    config.style.l2 = 1e-2
    config.ensemble = ml_collections.ConfigDict()
    config.ensemble.members = "finetune,gram,amplitude,style,keywords"
    config.ensemble.combine = "log"  # Geometric mean; mean: arithmetic.
    config.dry_run = False
    return config


def _learning() -> ml_collections.ConfigDict:
    """What trains on the loop, as the domain study does."""
    return ml_collections.ConfigDict(
        {
            "epochs": 50,
            "examples": 0,  # If set, the length instead of epochs.
            "batch_size": 256,
            "eval_every": 1,  # Epochs between looks at the validation loss.
            "log_every": 50,
            "crop_scale": (0.9, 1.0),
            "crop_ratio": (3 / 4, 4 / 3),
            "flip": False,
            "optim": {
                "name": "sgd",  # sgd | adamw
                "lr": 0.1,
                "warmup": 0,
                "momentum": 0.9,
                "beta1": 0.9,
                "beta2": 0.98,
                "eps": 1e-6,
                "weight_decay": 5e-4,
                "clip": 0.0,
                "schedule": "step",  # step | cosine
                "drop_every": 20,
                "drop_factor": 0.1,
            },
        }
    )


def pool() -> ml_collections.ConfigDict:
    config = base()
    config.dtype = "float32"
    config.data.root = "data/pool"
    config.data.test_sets = "test/pool,test/mosaic"
    config.data.workers = 0
    world = demo_world.DemoSpec(
        pool=20_000, pool_copies=0.0, test_pool=12_000, test_natural=600, test_style=600
    )
    config.data.demo = ml_collections.ConfigDict(dataclasses.asdict(world))
    config.labels.path = ""
    config.labels.simulate = ml_collections.ConfigDict(
        {
            "train": 2000,  # One annotator each, whose labels are wrong at this rate.
            "train_noise": 0.05,
            "annotators": 3,  # Of each validation and test label; disagreements are adjudicated.
            "error": 0.01,
        }
    )
    config.labels.min_annotators = 3
    # No 188 images prove a precision of 0.98 at 95 %: fewer are not asked to show it either.
    config.calibration.min_support = 400
    config.inputs = ("configs/mix.py:encoder",)
    config.encoder.checkpoint = "runs/mix-encoder"
    vision = {"image_size": config.data.demo.size}
    config.encoder.model = ml_collections.ConfigDict({"name": "tiny", "vision": vision})
    _shorten(config, epochs=80, others=25)
    config.finetune.mixup = 0.5  # A label in twenty is wrong.
    config.gram.channels = 32
    config.gram.l2 = 0.1
    config.amplitude.image_size = config.data.demo.size
    config.amplitude.l2 = 1.0
    config.keywords.learn_words = 20
    config.ensemble.members = "gram,amplitude,keywords"  # Fitted in seconds, all three.
    return config


def _shorten(config: ml_collections.ConfigDict, epochs: int, others: int) -> None:
    """A tiny tower on few labels: AdamW, a cosine to 0, crops, mirrored images.

    Args:
      epochs: of the fine-tuned classifier.
      others: epochs of what else learns.
    """
    lengths = {"finetune": (epochs, 10), "frozen": (others, 5), "style": (others, 5)}
    for name, (length, looks) in lengths.items():
        section = config[name]
        section.epochs = length
        section.eval_every = max(1, length // looks)
        section.batch_size = 64
        section.crop_scale = (0.5, 1.0)
        section.flip = True
        section.optim.name = "adamw"
        section.optim.schedule = "cosine"
        section.optim.lr = 1.5e-3
        section.optim.warmup = 50
        section.optim.weight_decay = 0.2
    config.finetune.label_smoothing = 0.05


def demo() -> ml_collections.ConfigDict:
    config = pool()
    config.inputs = ("configs/dedup.py",)
    config.method = "ensemble"
    config.data.root = "data/demo"
    config.data.demo = ml_collections.ConfigDict(dataclasses.asdict(demo_world.DemoSpec()))
    config.data.exclude = "runs/dedup/duplicates.parquet"
    config.data.test_sets = ""
    config.encoder.checkpoint = ""
    # More labels than in the study, which simulated annotators give for nothing: the more of them
    # calibrate, the less recall is lost to proving the precision.
    config.labels.simulate.train = 4000
    config.labels.validation = 6000
    config.labels.test = 1000
    return config


def pacs() -> ml_collections.ConfigDict:
    config = pool()
    config.method = "compare"
    config.compare = "finetune,frozen,centroid,gram,amplitude,style,ensemble"
    config.data.root = "data"
    config.data.datasets = "pacs/photo,pacs/art_painting,pacs/cartoon,pacs/sketch"
    config.data.test_sets = ""
    config.data.demo = ml_collections.ConfigDict()
    config.labels.simulate = ml_collections.ConfigDict()
    config.labels.folds = 5
    # 869 of the images are natural: too few to prove 98 % where the classifier is not very sure.
    config.calibration.rule = "point"
    config.calibration.min_support = 50
    config.inputs = ()
    config.encoder.checkpoint = ""
    vision = {"stem_blocks": 1}
    config.encoder.model = ml_collections.ConfigDict({"name": "tiny-64", "vision": vision})
    _shorten(config, epochs=16, others=8)
    config.finetune.eval_every = 4
    config.finetune.mixup = 0.0  # The labels are right.
    # What tells paintings from photographs is fine: these two see the images at their full size.
    config.gram.image_size = 224
    config.gram.channels = 64
    config.amplitude.image_size = 224
    config.amplitude.bins = 100
    config.amplitude.l2 = 0.1
    config.ensemble.members = "finetune,gram,amplitude,style"
    return config


def paper() -> ml_collections.ConfigDict:
    config = base()
    config.encoder.checkpoint = "checkpoints/ViT-L-14"
    return config
