"""Augmentation of a whole batch in supervised training, on the device.

Label smoothing, mixup and CutMix, and random erasing, as pure functions of JAX arrays.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Images = Float[Array, "batch height width channels"]
Targets = Float[Array, "batch classes"]

_TRIES = 10


def smoothed_one_hot(
    labels: Int[Array, "batch"], num_classes: int, smoothing: float = 0.0
) -> Targets:
    """Returns smoothed one-hot targets of labels.

    The target of a class is ``smoothing / num_classes``, plus ``1 - smoothing`` for the label.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    return (1 - smoothing) * jax.nn.one_hot(labels, num_classes) + smoothing / num_classes


def mixup_or_cutmix(
    key: PRNGKeyArray,
    images: Images,
    targets: Targets,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float = 1.0,
    cutmix_share: float = 0.5,
) -> tuple[Images, Targets]:
    """Mixes a batch with itself in reverse order, image with image and target with target.

    One draw decides for the whole batch whether it is mixed, and how. Mixup returns
    ``a * image + (1 - a) * partner``; CutMix pastes a box of the partner whose share of the area is
    ``1 - a``; ``a ~ Beta(alpha, alpha)``. A box that reaches beyond the image is cut at its edge,
    and targets are mixed by the share that remains. The image in the middle of an odd batch is its
    own partner.

    Args:
        key: of the draws.
        images, targets: of the batch.
        mixup_alpha, cutmix_alpha: parameters of the Beta distributions; 0 leaves one of the two
            ways out.
        probability: that the batch is mixed at all.
        cutmix_share: the probability of CutMix where both ways are possible.

    Returns:
        Mixed images and targets, in the shapes of the given ones.

    Source: Zhang et al. 2018, mixup; Yun et al. 2019, CutMix; together as in Touvron et al. 2021,
    DeiT.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return images, targets
    if mixup_alpha <= 0 or cutmix_alpha <= 0:
        cutmix_share = float(cutmix_alpha > 0)
    mix_key, kind_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    is_mixed = jax.random.bernoulli(mix_key, probability)
    is_cutmix = jax.random.bernoulli(kind_key, cutmix_share)
    own_share = _beta(mixup_key, mixup_alpha)
    is_pasted = _box(box_key, 1 - _beta(cutmix_key, cutmix_alpha), images.shape[1:3])
    own = jnp.where(is_cutmix, 1.0 - is_pasted, own_share)  # the image's own share of each pixel
    own = jnp.where(is_mixed, own, 1.0)
    partners = images[::-1]
    mixed = own[..., None] * images + (1 - own[..., None]) * partners
    share = own.mean()
    return mixed.astype(images.dtype), share * targets + (1 - share) * targets[::-1]


def random_erasing(
    key: PRNGKeyArray,
    images: Images,
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 10 / 3),
) -> Images:
    """Fills a box of some images with normal noise, a value for each pixel and channel.

    Args:
        key: of the draws.
        images: of zero mean and unit deviation.
        probability: that an image gets such a box.
        area: range of the box's share of the image's area, drawn uniformly.
        ratio: range of the box's height / width, drawn uniformly in the logarithm. Of ten boxes the
            first that fits into the image is taken; if none does, the image stays whole.

    Returns:
        The images, of the same shape and type.

    Source: Zhong et al. 2020, "Random Erasing Data Augmentation".
    """
    if probability == 0:
        return images
    chosen_key, box_key, noise_key = jax.random.split(key, 3)
    batch, *size, _ = images.shape
    is_chosen = jax.random.bernoulli(chosen_key, probability, (batch,))
    keys = jax.random.split(box_key, batch)
    is_in_box = jax.vmap(lambda key: _erased_box(key, tuple(size), area, ratio))(keys)
    is_erased = is_in_box & is_chosen[:, None, None]
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    return jnp.where(is_erased[..., None], noise, images)


def _beta(key: PRNGKeyArray, alpha: float) -> Float[Array, ""]:
    """Draws from Beta(alpha, alpha). Where ``alpha`` is 0, the result is not used: it is 1."""
    return jax.random.beta(key, alpha, alpha) if alpha > 0 else jnp.float32(1)


def _box(
    key: PRNGKeyArray, share: Float[Array, ""], size: tuple[int, int]
) -> Float[Array, "height width"]:
    """Returns 1 in a box around a random pixel and 0 outside.

    The box has the given share of the image's area, and the image's proportions.
    """
    inside = []
    for axis_key, length in zip(jax.random.split(key), size, strict=True):
        half = jnp.floor(length * jnp.sqrt(share)) // 2
        centre = jax.random.randint(axis_key, (), 0, length)
        position = jnp.arange(length)
        inside.append((position >= centre - half) & (position < centre + half))
    return (inside[0][:, None] & inside[1]).astype(jnp.float32)


def _erased_box(
    key: PRNGKeyArray,
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> Bool[Array, "height width"]:
    """Returns where an image of ``size`` (height, width) is erased; see ``random_erasing``."""
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    height, width = size
    target = (
        jax.random.uniform(area_key, (_TRIES,), minval=area[0], maxval=area[1]) * height * width
    )
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(
        jax.random.uniform(ratio_key, (_TRIES,), minval=log_ratio[0], maxval=log_ratio[1])
    )
    box_height = jnp.round(jnp.sqrt(target * aspect))
    box_width = jnp.round(jnp.sqrt(target / aspect))
    fits = (box_height < height) & (box_width < width)
    first = jnp.argmax(fits)
    box_height, box_width = (
        jnp.where(fits[first], side[first], 0).astype(jnp.int32) for side in (box_height, box_width)
    )
    top = jax.random.randint(top_key, (), 0, height - box_height + 1)
    left = jax.random.randint(left_key, (), 0, width - box_width + 1)
    row, column = jnp.arange(height), jnp.arange(width)
    return ((row >= top) & (row < top + box_height))[:, None] & (
        (column >= left) & (column < left + box_width)
    )
