"""ImageNet networks whose inner activations carry texture: VGG-19 and ResNet-50, forward only.

Weights come from a safetensors file with torchvision's names and layouts; which network it is, is
read off the names. Both networks here are torchvision's in inference form: BatchNorm is folded into
the convolution before it, w' = w g / sqrt(var + eps) and b' = beta - mean g / sqrt(var + eps).

Layers that can be looked at:
  VGG-19     features_0, 5, 10, 19, 28, which are conv1_1, conv2_1, ..., conv5_1, *after* their
             ReLU, as in Gatys et al. 2016. (The usual PyTorch code stores the convolution's output,
             but torchvision's ReLU works in place, so that what it sees is rectified as well.)
  ResNet-50  the stem (convolution, norm, ReLU; before the pool) and the outputs of the four stages.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import Array, Float, UInt8

from clipdg_jax.errors import UserError

# torchvision's statistics of ImageNet, of pixels in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_BN_EPS = 1e-5  # of torch's BatchNorm2d

Params = dict[str, Array]
HostParams = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution of torchvision's: its name there, its BatchNorm's if it has one, its shape."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    norm: str = ""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """What the file must hold for it: name -> shape (weights are [out, in, kh, kw])."""
        shapes = {f"{self.name}.weight": (self.outputs, self.inputs, self.kernel, self.kernel)}
        if not self.norm:
            return shapes | {f"{self.name}.bias": (self.outputs,)}
        of_norm = ("weight", "bias", "running_mean", "running_var")
        return shapes | {f"{self.norm}.{part}": (self.outputs,) for part in of_norm}


@dataclasses.dataclass(frozen=True)
class Vgg:
    """torchvision's VGG: blocks of 3x3 convolutions with ReLU, a 2x2 max pool between them.

    blocks: (channels, convolutions) of each block.
    """

    blocks: tuple[tuple[int, int], ...] = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))

    def plan(self) -> tuple[tuple[Conv, ...], ...]:
        """The convolutions of each block, named as in torchvision's `features`."""
        place, inputs, plan = 0, 3, []
        for channels, count in self.blocks:
            block = []
            for _ in range(count):
                block.append(Conv(f"features.{place}", inputs, channels, 3))
                place, inputs = place + 2, channels  # A ReLU follows each convolution,
            place += 1  # and a pool each block.
            plan.append(tuple(block))
        return tuple(plan)

    def convs(self) -> tuple[Conv, ...]:
        """All that `activations` computes: nothing behind the last block's first convolution."""
        *before, last = self.plan()
        return tuple(conv for block in before for conv in block) + last[:1]

    def known(self) -> set[str]:
        """Tensors of the whole network; a file with others holds another one."""
        return {name for block in self.plan() for conv in block for name in conv.tensors()}

    def layers(self) -> tuple[str, ...]:
        """Names of the layers that `activations` gives."""
        return tuple(block[0].name.replace(".", "_") for block in self.plan())

    def activations(
        self, params: Params, images: UInt8[Array, "b s s 3"]
    ) -> Iterator[Float[Array, "b h w c"]]:
        """The first convolution of each block, after its ReLU, float32."""
        x, plan = _normalised(images), self.plan()
        for i, block in enumerate(plan):
            if i:
                x = _max_pool(x, 2, 2, 0)
            x = jax.nn.relu(_conv(params, block[0], x))
            yield x
            for conv in block[1:] if i + 1 < len(plan) else ():
                x = jax.nn.relu(_conv(params, conv, x))


@dataclasses.dataclass(frozen=True)
class ResNet:
    """torchvision's ResNet of bottleneck blocks (the stride is in the 3x3 convolution).

    stem: channels of the 7x7 convolution. stages: (inner channels, blocks) of each stage, whose
    output has four times as many channels.
    """

    stem: int = 64
    stages: tuple[tuple[int, int], ...] = ((64, 3), (128, 4), (256, 6), (512, 3))

    def _stem(self) -> Conv:
        return Conv("conv1", 3, self.stem, 7, norm="bn1")

    def plan(self) -> tuple[tuple[tuple[Conv, ...], ...], ...]:
        """The convolutions of each block of each stage; a fourth one is the shortcut's."""
        inputs, plan = self.stem, []
        for i, (width, count) in enumerate(self.stages, 1):
            stage = []
            for j in range(count):
                block = f"layer{i}.{j}"
                shapes = ((inputs, width, 1), (width, width, 3), (width, 4 * width, 1))
                convs = [
                    Conv(f"{block}.conv{k}", *shape, norm=f"{block}.bn{k}")
                    for k, shape in enumerate(shapes, 1)
                ]
                if j == 0:
                    shortcut = f"{block}.downsample"
                    convs.append(Conv(f"{shortcut}.0", inputs, 4 * width, 1, norm=f"{shortcut}.1"))
                stage.append(tuple(convs))
                inputs = 4 * width
            plan.append(tuple(stage))
        return tuple(plan)

    def convs(self) -> tuple[Conv, ...]:
        """All convolutions."""
        inner = [conv for stage in self.plan() for block in stage for conv in block]
        return (self._stem(), *inner)

    def known(self) -> set[str]:
        """Tensors of the whole network; a file with others holds another one."""
        return {name for conv in self.convs() for name in conv.tensors()}

    def layers(self) -> tuple[str, ...]:
        """Names of the layers that `activations` gives."""
        return ("stem", *(f"layer{i + 1}" for i in range(len(self.stages))))

    def activations(
        self, params: Params, images: UInt8[Array, "b s s 3"]
    ) -> Iterator[Float[Array, "b h w c"]]:
        """The stem after its ReLU and the output of each stage, float32."""
        x = jax.nn.relu(_conv(params, self._stem(), _normalised(images), stride=2))
        yield x
        x = _max_pool(x, 3, 2, 1)
        for i, stage in enumerate(self.plan()):
            for j, (first, second, third, *shortcut) in enumerate(stage):
                stride = 2 if i and j == 0 else 1
                y = jax.nn.relu(_conv(params, first, x))
                y = jax.nn.relu(_conv(params, second, y, stride))
                y = _conv(params, third, y)
                for conv in shortcut:
                    x = _conv(params, conv, x, stride)
                x = jax.nn.relu(x + y)
            yield x


Network = Vgg | ResNet

# Name -> the network, and the tensor by which its files are recognised.
NETWORKS: dict[str, tuple[Network, str]] = {
    "VGG-19": (Vgg(), "features.0.weight"),
    "ResNet-50": (ResNet(), "layer1.0.conv1.weight"),
}
# Of the classifiers on top, and counters: not used here.
_ASIDE = ("classifier.", "fc.")
_COUNTER = ".num_batches_tracked"


def load(path: str) -> tuple[str, HostParams]:
    """Reads the weights of one of NETWORKS.

    Args:
      path: a safetensors file with the names of torchvision's state_dict, float32 or 16 bits.

    Returns:
      The network's name in NETWORKS, and its parameters (see `read`).

    Raises:
      UserError: there is no such file, or it is damaged, or it is not one of these networks,
        naming the tensor that shows it.
    """
    with _open(path) as file:
        names = set(file.keys())
        for name, (network, mark) in NETWORKS.items():
            if mark in names:
                return name, read(path, network, name)
    marks = " nor ".join(f"{mark} ({name})" for name, (_, mark) in NETWORKS.items())
    found = min(names, default="no tensor")
    raise UserError(
        f"{path}: holds neither {marks}, but {found}; save torchvision's state_dict of one of them"
    )


def read(path: str, network: Network, name: str) -> HostParams:
    """Reads, checks and folds the weights of `network`, which messages call `name`.

    Returns:
      `<convolution>.kernel` [kh, kw, in, out] and `<convolution>.bias` [out], float32.

    Raises:
      UserError: as `load`.
    """
    params: HostParams = {}
    with _open(path) as file:
        present = set(file.keys())
        _check_names(path, present, network, name)
        for conv in network.convs():
            tensors = {}
            for tensor, shape in conv.tensors().items():
                found = tuple(file.get_slice(tensor).get_shape())
                if found != shape:
                    raise UserError(
                        f"{path}: {tensor} is {list(found)}, in {name} it is {list(shape)}; "
                        f"give the weights of torchvision's {name}"
                    )
                tensors[tensor] = file.get_tensor(tensor).astype(np.float64)
                if not np.isfinite(tensors[tensor]).all():
                    raise UserError(
                        f"{path}: {tensor} has numbers that are not finite; save the weights again"
                    )
            params |= _fold(conv, tensors)
    return params


def _open(path: str) -> safetensors.safe_open:
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: there is no such file; give the path of a safetensors file")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: is not a safetensors file ({error}); save the weights as one"
        ) from error


def _check_names(path: str, present: Collection[str], network: Network, name: str) -> None:
    """Raises UserError, naming a tensor, unless the file's tensors are those of the network."""
    needed = [tensor for conv in network.convs() for tensor in conv.tensors()]
    missing = [tensor for tensor in needed if tensor not in present]
    if missing:
        raise UserError(
            f"{path}: has no {missing[0]}, which {name} has; "
            f"give the weights of torchvision's {name}"
        )
    known = network.known()
    foreign = [
        tensor
        for tensor in sorted(present)
        if tensor not in known and not tensor.startswith(_ASIDE) and not tensor.endswith(_COUNTER)
    ]
    if foreign:
        raise UserError(
            f"{path}: has {foreign[0]}, which {name} has not; "
            f"give the weights of torchvision's {name}"
        )


def _fold(conv: Conv, tensors: dict[str, np.ndarray]) -> HostParams:
    """One convolution's kernel and bias, its BatchNorm folded in; in float64 until the end."""
    kernel = tensors[f"{conv.name}.weight"].transpose(2, 3, 1, 0)
    if conv.norm:
        parts = ("weight", "bias", "running_mean", "running_var")
        gain, shift, mean, variance = (tensors[f"{conv.norm}.{part}"] for part in parts)
        scale = gain / np.sqrt(np.maximum(variance, 0) + _BN_EPS)
        kernel, bias = kernel * scale, shift - mean * scale
    else:
        bias = tensors[f"{conv.name}.bias"]
    return {
        f"{conv.name}.kernel": np.ascontiguousarray(kernel, np.float32),
        f"{conv.name}.bias": bias.astype(np.float32),
    }


def _normalised(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    mean = jnp.asarray(MEAN, jnp.float32).reshape(1, 1, 1, 3)
    std = jnp.asarray(STD, jnp.float32).reshape(1, 1, 1, 3)
    return (images.astype(jnp.float32) / 255 - mean) / std


def _conv(
    params: Params, conv: Conv, x: Float[Array, "b h w i"], stride: int = 1
) -> Float[Array, "b h/s w/s o"]:
    """Padded by half the kernel, as all of these are."""
    pad = conv.kernel // 2
    y = jax.lax.conv_general_dilated(
        x,
        params[f"{conv.name}.kernel"],
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + params[f"{conv.name}.bias"].reshape(1, 1, 1, -1)


def _max_pool(
    x: Float[Array, "b h w c"], window: int, stride: int, pad: int
) -> Float[Array, "b h/s w/s c"]:
    padding: Sequence[tuple[int, int]] = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, stride, stride, 1), padding
    )
