"""open_clip, wherever torch and torchvision are: `from tools.reference import open_clip`.

A torchvision built for CUDA cannot load its compiled operators beside a torch for the CPU, and then
fails to import because two of them are not there. open_clip uses its transforms only: declaring
the operators is enough.
"""

from __future__ import annotations

import torch

try:
    import torchvision
except RuntimeError:
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
import open_clip
from open_clip import model as open_clip_model
from timm.data import ImageNetInfo

__all__ = ["ImageNetInfo", "open_clip", "open_clip_model", "torch", "torchvision"]
