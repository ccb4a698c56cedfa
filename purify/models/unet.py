"""A small U-Net without noise input, for score models."""

import flax.linen as nn
import jax.numpy as jnp

from purify.models.layers import Conv, GroupNorm, ResidualBlock, mean_pool, upsample
from purify.types import Array


class UNet(nn.Module):
    """[N, H, W, C] images in [0, 1] (plus noise) -> [N, H, W, C], unbounded.

    widths: channels at full, half, quarter ... resolution; H and W must be divisible by
    2^(levels - 1). blocks: residual blocks per level and direction.
    """

    widths: tuple[int, ...] = (32, 64)
    blocks: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        y = Conv(self.widths[0])(2.0 * x - 1.0)
        skips = []
        for level, width in enumerate(self.widths):
            if level:
                y = mean_pool(y)
            for _ in range(self.blocks):
                y = ResidualBlock(width)(y)
            skips.append(y)
        y = ResidualBlock(self.widths[-1])(y)
        for level, width in reversed(list(enumerate(self.widths[:-1]))):
            y = upsample(Conv(width, size=1)(y))
            y = Conv(width, size=1)(jnp.concatenate([y, skips[level]], axis=-1))
            for _ in range(self.blocks):
                y = ResidualBlock(width)(y)
        return Conv(channels)(nn.silu(GroupNorm()(y)))
