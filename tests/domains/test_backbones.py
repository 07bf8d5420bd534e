"""The ImageNet networks against plain float64 convolutions, on narrow ones of their structure."""

import math

import jax
import numpy as np
import pytest
import safetensors.numpy

from clipdg_jax import errors
from clipdg_jax.domains import backbones

VGG = backbones.Vgg(((3, 2), (4, 3), (5, 2)))
RESNET = backbones.ResNet(4, ((2, 2), (3, 1)))
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
NORMALISED = ((IMAGES / 255 - np.array(backbones.MEAN)) / np.array(backbones.STD)).transpose(
    0, 3, 1, 2
)


def weights(network) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {k: v for conv in network.convs() for k, v in conv.tensors().items()}
    found = {k: rng.normal(0, 0.5, shape).astype(np.float32) for k, shape in shapes.items()}
    return {k: np.abs(v) + 0.1 if k.endswith("running_var") else v for k, v in found.items()}


@pytest.fixture
def save(tmp_path):
    def save(tensors):
        path = str(tmp_path / "weights.safetensors")
        safetensors.numpy.save_file(tensors, path)
        return path

    return save


def conv(x, tensors, name, stride=1):
    """torch's conv2d in [b, c, h, w], one tap after the other; padded by half the kernel."""
    weight = tensors[f"{name}.weight"].astype(np.float64)
    k = weight.shape[2]
    side = math.ceil(x.shape[2] / stride)
    x = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    total = np.zeros((len(x), len(weight), side, side))
    for i in range(k):
        for j in range(k):
            taps = x[:, :, i : i + stride * side : stride, j : j + stride * side : stride]
            total += np.einsum("bchw,oc->bohw", taps[:, :, :side, :side], weight[:, :, i, j])
    bias = tensors.get(f"{name}.bias", np.zeros(len(weight)))
    return total + bias[:, None, None]


def norm(x, tensors, name):
    parts = ("running_mean", "running_var", "weight", "bias")
    mean, var, gain, shift = (tensors[f"{name}.{part}"][:, None, None] for part in parts)
    return (x - mean) / np.sqrt(var.astype(np.float64) + 1e-5) * gain + shift


def pool(x, window, pad):
    """Max pool of stride 2."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
    side = (x.shape[2] - window) // 2 + 1
    rows = [[(2 * i, 2 * j) for j in range(side)] for i in range(side)]
    found = [[x[:, :, i : i + window, j : j + window].max((2, 3)) for i, j in row] for row in rows]
    return np.array(found).transpose(2, 3, 0, 1)


def relu(x):
    return np.maximum(x, 0)


def compare(network, path, want):
    params = backbones.read(path, network, "it")
    got = jax.jit(lambda p, x: list(network.activations(p, x)))(params, IMAGES)
    assert len(got) == len(want) == len(network.layers())
    for ours, theirs in zip(got, want):
        np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
        assert np.abs(theirs).max() > 0.1


def test_vgg_against_float64(save):
    t = weights(VGG)
    first = relu(conv(NORMALISED, t, "features.0"))
    x = pool(relu(conv(first, t, "features.2")), 2, 0)
    second = relu(conv(x, t, "features.5"))
    x = relu(conv(relu(conv(second, t, "features.7")), t, "features.9"))
    third = relu(conv(pool(x, 2, 0), t, "features.12"))
    # Of the last block only the first convolution is needed, but a whole file holds more.
    more = {"features.14.weight": np.ones(1), "classifier.0.bias": np.ones(2)}
    compare(VGG, save(t | more), [first, second, third])
    assert VGG.layers() == ("features_0", "features_5", "features_12")


def test_resnet_against_float64(save):
    t = weights(RESNET)

    def block(x, name, stride):
        y = relu(norm(conv(x, t, f"{name}.conv1"), t, f"{name}.bn1"))
        y = relu(norm(conv(y, t, f"{name}.conv2", stride), t, f"{name}.bn2"))
        y = norm(conv(y, t, f"{name}.conv3"), t, f"{name}.bn3")
        if f"{name}.downsample.0.weight" in t:
            x = norm(conv(x, t, f"{name}.downsample.0", stride), t, f"{name}.downsample.1")
        return relu(x + y)

    stem = relu(norm(conv(NORMALISED, t, "conv1", 2), t, "bn1"))
    first = block(block(pool(stem, 3, 1), "layer1.0", 1), "layer1.1", 1)
    second = block(first, "layer2.0", 2)
    more = {"fc.weight": np.ones(1), "bn1.num_batches_tracked": np.ones(1, np.int64)}
    compare(RESNET, save(t | more), [stem, first, second])


def test_full_size_is_torchvisions():
    vgg, resnet = backbones.Vgg(), backbones.ResNet()
    layers = tuple(f"features_{i}" for i in (0, 5, 10, 19, 28))
    assert vgg.layers() == layers
    assert vgg.convs()[-1].tensors() == {
        "features.28.weight": (512, 512, 3, 3),
        "features.28.bias": (512,),
    }

    def learned(convs):
        shapes = [item for conv in convs for item in conv.tensors().items()]
        return sum(math.prod(shape) for name, shape in shapes if "running" not in name)

    # Published parameter counts, less the classifiers.
    assert learned(conv for block in vgg.plan() for conv in block) == 143_667_240 - 123_642_856
    assert learned(resnet.convs()) == 25_557_032 - 2_049_000


def test_recognised_by_names(save, monkeypatch):
    marks = {name: mark for name, (_, mark) in backbones.NETWORKS.items()}
    narrow = {"VGG-19": (VGG, marks["VGG-19"]), "ResNet-50": (RESNET, marks["ResNet-50"])}
    monkeypatch.setattr(backbones, "NETWORKS", narrow)
    for name, (network, _) in narrow.items():
        found, params = backbones.load(save(weights(network)))
        assert found == name
        assert len(params) == 2 * len(network.convs())
        assert {value.dtype for value in params.values()} == {np.dtype(np.float32)}


def test_half_precision_is_read(save):
    halves = {k: v.astype(np.float16) for k, v in weights(VGG).items()}
    params = backbones.read(save(halves), VGG, "it")
    want = halves["features.7.weight"].transpose(2, 3, 1, 0).astype(np.float32)
    np.testing.assert_array_equal(params["features.7.kernel"], want)


def test_what_is_wrong_with_a_file_is_told(save, tmp_path):
    good = weights(VGG)

    def refused(tensors, pattern):
        with pytest.raises(errors.UserError, match=pattern) as caught:
            backbones.read(save(tensors), VGG, "VGG-19")
        assert "\n" not in str(caught.value)

    without = {k: v for k, v in good.items() if k != "features.5.bias"}
    refused(without, r"weights\.safetensors: has no features\.5\.bias, which VGG-19 has")
    refused(good | {"features.1.weight": np.ones(3)}, r"has features\.1\.weight, which VGG-19 has")
    turned = good["features.5.weight"].transpose(1, 0, 2, 3)
    wrong = good | {"features.5.weight": np.ascontiguousarray(turned)}
    refused(wrong, r"features\.5\.weight is \[3, 4, 3, 3\], in VGG-19 it is \[4, 3, 3, 3\]")
    refused(good | {"features.0.bias": np.full(3, np.nan)}, r"features\.0\.bias has numbers that")

    for content in (b"", b"\x80\x04 a pickle"):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(errors.UserError, match="damaged: is not a safetensors file"):
            backbones.load(str(tmp_path / "damaged"))
    with pytest.raises(errors.UserError, match="there is no such file"):
        backbones.load(str(tmp_path / "nowhere"))
    with pytest.raises(errors.UserError, match=r"holds neither features\.0\.weight.*but a\.weight"):
        backbones.load(save({"a.weight": np.ones(2)}))
    with pytest.raises(errors.UserError, match=r"has no features\.0\.bias, which VGG-19 has"):
        backbones.load(save({"features.0.weight": np.ones((64, 3, 3, 3))}))
