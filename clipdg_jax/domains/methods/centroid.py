"""Nearest class centroid on the encoder's features, which stay as they are.

With f the feature of an image, of length 1, and c_k the normalised mean of the features of domain
k in training, the probabilities are softmax(scale * f.c_k) over the domains that had labels.

What `scale` does: the most probable domain never depends on it. With two domains neither does the
order of images by a probability, which is sigmoid(scale (f.c_1 - f.c_2)). With three it does:
1/P_1 = 1 + exp(-scale (f.c_1 - f.c_2)) + exp(-scale (f.c_1 - f.c_3)), so a large scale ranks by the
smaller of both margins, and a small one by their mean. (Images whose probabilities float32 cannot
tell apart are tied: at scale 100, those of more than about 0.17 margin.)
"""

from __future__ import annotations

from typing import ClassVar, Self

import jax
import numpy as np
from jaxtyping import Float32, Float64, Int32

from clipdg_jax.domains import encoder as encoder_lib
from clipdg_jax.domains import examples as examples_lib
from clipdg_jax.domains import inputs as inputs_lib
from clipdg_jax.domains.methods import method
from clipdg_jax.errors import UserError


class Centroid(method.Method):
    """Centroids of the domains, with the encoder whose features they are of.

    Config: `scale`, > 0, of the cosines; 100 is CLIP's largest.
    """

    name: ClassVar[str] = "centroid"

    def __init__(
        self,
        encoder: encoder_lib.Encoder,
        centroids: Float64[np.ndarray, "k e"],
        domains: Int32[np.ndarray, " k"],
        scale: float,
    ):
        self.encoder, self.centroids, self.domains, self.scale = encoder, centroids, domains, scale

    @classmethod
    def fit(
        cls,
        train: examples_lib.Examples,
        validation: examples_lib.Examples,
        context: method.Context,
    ) -> Self:
        """Takes the means; images that cannot be decoded have no part in them.

        Raises:
          UserError: `scale` is not positive, or fewer than two domains have images.
        """
        scale = float(context.config.scale)
        if not 0 < scale < np.inf:
            raise UserError(f"centroid.scale: {scale} is not a positive number; CLIP's is 100")
        size = context.encoder.model.config.embed_dim
        sums = np.zeros((len(inputs_lib.DOMAINS), size))
        start = 0
        for inputs in train.batches():
            features = context.encoder.features(inputs.images(context.encoder.image_size))
            domain = train.domain[start : start + len(inputs)]
            start += len(inputs)
            np.add.at(sums, domain[inputs.valid], features[inputs.valid].astype(np.float64))
        lengths = np.linalg.norm(sums, axis=1)
        domains = np.flatnonzero(lengths).astype(np.int32)
        if len(domains) < 2:
            raise UserError(
                "labels: those to train on are of one domain or none; a classifier needs two"
            )
        return cls(context.encoder, sums[domains] / lengths[domains, None], domains, scale)

    def score(self, inputs: inputs_lib.Inputs) -> Float32[np.ndarray, "n 2"]:
        """Probabilities of natural and of rendition."""
        features = self.encoder.features(inputs.images(self.encoder.image_size))
        logits = self.scale * (features.astype(np.float64) @ self.centroids.T)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found = np.zeros((len(features), len(inputs_lib.DOMAINS)), np.float32)
        found[:, self.domains] = powers / powers.sum(axis=1, keepdims=True)
        return found[:, :2]

    def state(self) -> method.State:
        """The centroids, and the encoder by its own names."""
        arrays = {"centroids": self.centroids, "domains": self.domains, **self.encoder.arrays()}
        return method.State(
            arrays, {"scale": self.scale, "architecture": self.encoder.model.config.to_dict()}
        )

    @classmethod
    def load(cls, state: method.State, mesh: jax.sharding.Mesh) -> Self:
        """The method that `state` was taken of."""
        encoder = encoder_lib.from_arrays(state.meta["architecture"], state.arrays, mesh)
        arrays = state.arrays
        return cls(encoder, arrays["centroids"], arrays["domains"], state.meta["scale"])

    def describe(self) -> str:
        """What it looks at."""
        return f"nearest of {len(self.domains)} class centroids of the encoder's frozen features"
