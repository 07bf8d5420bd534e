"""open_clip's own training loader, for `tools.bench_loader`; run by a Python that has open_clip.

Needs `open_clip_torch`, `torch`, `torchvision`, `webdataset`, `pandas` and `braceexpand`, and
nothing of clipdg_jax. It opens the tars with `open_clip_train.data.get_wds_dataset` (sampling
shards with replacement, so that it never ends) and the transform and tokeniser of ViT-B-32. For
every line "<skip> <count>" on its standard input it loads as many batches, and prints the seconds
that the latter took.
"""

import argparse
import json
import sys
import time

import torch


def _import_open_clip():
    """open_clip's loader; also where torchvision was built for another build of torch.

    torchvision then has no compiled operators and fails when it registers them. The transforms
    use none: they are Pillow.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        torch.library.register_fake = lambda *_, **__: lambda function: function
    import open_clip
    import open_clip.transform
    import open_clip_train.data

    return open_clip, open_clip_train.data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tars", required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    options = parser.parse_args()
    open_clip, data = _import_open_clip()
    settings = argparse.Namespace(
        train_data=options.tars,
        train_num_samples=10**7,
        train_data_upsampling_factors=None,
        dataset_resampled=True,
        seed=0,
        batch_size=options.batch_size,
        workers=options.workers,
        world_size=1,
    )
    transform = open_clip.transform.image_transform(options.size, is_train=True)
    tokens = open_clip.get_tokenizer("ViT-B-32")
    loader = data.get_wds_dataset(settings, transform, is_train=True, tokenizer=tokens).dataloader
    batches = iter(loader)
    images, _ = next(batches)
    about = {
        "shape": list(images.shape),
        "open_clip": open_clip.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        skip, count = map(int, line.split())
        for _ in range(skip):
            next(batches)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
