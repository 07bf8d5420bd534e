"""Floating-point operations of a CLIP in closed form; a multiply-add counts as two.

Matrix products only, as is usual for model FLOP utilisation: normalisations, activations, softmax
and biases are left out (about 1 % of ViT-B/32). Attention counts all n x n scores, masked or not.
"""

from clipdg_jax.models import config as config_lib


def _outputs(width: int, mlp_ratio: float) -> int:
    """A layer's output projection and MLP, of one token."""
    return 2 * (width**2 + 2 * width * int(width * mlp_ratio))


def _transformer(tokens: int, read: int, width: int, layers: int, mlp_ratio: float) -> int:
    """A row of tokens, of which `read` are read; the last layer's outputs are of those only.

    Per layer and token queries, keys and values, and `_outputs`; per pair of tokens its score and
    the use of it.
    """
    inputs = 2 * tokens * 3 * width**2 + 4 * tokens**2 * width
    return layers * inputs + ((layers - 1) * tokens + read) * _outputs(width, mlp_ratio)


def forward_flops_image(config: config_lib.ClipConfig) -> int:
    """One image through its tower. ViT-B/32: 8.30e9; 8.82e9 where all tokens are read."""
    c = config.vision
    stem, side, inputs = 0, c.image_size, 3
    for outputs in c.stem:
        side //= 2
        stem += 2 * side**2 * 9 * outputs * (inputs + c.stem_blocks * outputs)
        inputs = outputs
    patch = c.patch_size // 2 ** len(c.stem)
    patches = 2 * c.grid**2 * patch**2 * inputs * c.width
    read = 1 if c.pool == "tok" else c.tokens
    blocks = _transformer(c.tokens, read, c.width, c.layers, c.mlp_ratio)
    return stem + patches + blocks + 2 * c.width * config.embed_dim


def forward_flops_text(
    config: config_lib.ClipConfig, tokens: int | None = None, rows: float = 1
) -> float:
    """One caption. ViT-B/32, 77 tokens, a row for each: 5.60e9; 5.96e9 were all tokens read.

    Args:
      tokens: columns of a row, by default the whole context.
      rows: per caption; less than 1 where captions share rows.
    """
    c = config.text
    columns = tokens or c.context_length
    row = _transformer(columns, 0, c.width, c.layers, c.mlp_ratio)
    return rows * row + _outputs(c.width, c.mlp_ratio) + 2 * c.width * config.embed_dim


def train_flops_per_pair(
    config: config_lib.ClipConfig, tokens: int | None = None, rows: float = 1
) -> float:
    """Forward and backward of one pair: three times the forward pass. ViT-B/32, 77: 41.7e9.

    What remat and accumulation recompute is not counted, nor is the loss, which depends on the
    batch. tokens, rows: as for `forward_flops_text`.
    """
    return 3 * (forward_flops_image(config) + forward_flops_text(config, tokens, rows))
