"""Arrays of a tiny encoder under timm's names, for files that tests write."""

import numpy as np


def timm_arrays(width, depth=1, side=2, classes=1, channels=3, value=0, **more):
    """Returns float32 arrays of one value, for patches of 4 pixels.

    Args:
        width: of the encoder.
        depth: number of blocks.
        side: rows, and columns, of patches.
        classes: number of class tokens, 0 or 1.
        channels: of the images.
        value: of all elements.
        **more: further arrays by name, or others in place of these, as they are.
    """
    shapes = {
        "pos_embed": (1, side**2 + classes, width),
        "patch_embed.proj.weight": (width, channels, 4, 4),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    shapes |= {"cls_token": (1, 1, width)} if classes else {}
    block = {
        "norm1": (width,),
        "norm2": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    for index in range(depth):
        for name, shape in block.items():
            shapes[f"blocks.{index}.{name}.weight"] = shape
            shapes[f"blocks.{index}.{name}.bias"] = shape[:1]
    return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()} | more
