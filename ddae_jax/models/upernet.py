"""Networks of segmentation: heads on a vision transformer's features of several depths."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from ddae_jax.models.transformer import gelu
from ddae_jax.models.vit import ViT

Map = Float[ArrayLike, "batch rows columns channels"]
Maps = Sequence[Float[ArrayLike, "batch _ _ channels"]]
"""Feature maps, which may have different numbers of rows and columns."""

_NewMap = Float[Array, "batch new_rows new_columns new_channels"]

_POOLED = (1, 2, 3, 6)
_DROPOUT = 0.1
_AUXILIARY_WIDTH = 256


class FeaturePyramid(nn.Module):
    """Maps of four resolutions from the features of four depths on the grid of patches.

    The first becomes four times as fine as the grid, the second twice as fine, the third stays as
    it is, and the fourth becomes half as fine.

    Attributes:
        dtype: dtype of the computation.

    Source: Bao et al. 2021, BEiT, and He et al. 2022, appendix A.4, after Li et al. 2021,
    "Benchmarking Detection Transfer Learning with Vision Transformers", section 2.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[Map], is_training: bool = False
    ) -> tuple[Float[Array, "batch _ _ channels"], ...]:
        """Turns four maps of the same size, from shallow to deep, into four of decreasing size."""
        first, second, third, fourth = maps
        first = self._doubled(first, "up_1a")
        first = gelu(batch_norm(self.dtype, is_training, name="up_1_norm")(first))
        first = self._doubled(first, "up_1b")
        return first, self._doubled(second, "up_2"), third, nn.max_pool(fourth, (2, 2), (2, 2))

    def _doubled(self, values: Map, name: str) -> Float[Array, "batch 2*rows 2*columns channels"]:
        return Doubling(values.shape[-1], dtype=self.dtype, name=name)(values)


class Doubling(nn.Module):
    """A transposed convolution of kernel 2 and stride 2: each place becomes 2 x 2 places.

    It has the parameters and values of ``nn.ConvTranspose``, whose gradient is slow on a CPU
    (benchmarks/results/cpu_layers.json). As no two kernels overlap, it is computed as one matrix
    product.

    Attributes:
        width: number of output channels.
        dtype: dtype of the computation.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, values: Map) -> Float[Array, "batch 2*rows 2*columns new_channels"]:
        """Doubles the numbers of rows and columns."""
        batch, rows, columns, channels = values.shape
        shape = (2, 2, channels, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        # A transposed convolution applies its kernel to the places of a stride in reverse.
        matrix = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, -1)
        doubled = values.astype(self.dtype).reshape(-1, channels) @ matrix.astype(self.dtype)
        doubled = doubled.reshape(batch, rows, columns, 2, 2, self.width).swapaxes(2, 3)
        doubled = doubled.reshape(batch, 2 * rows, 2 * columns, self.width)
        return doubled + bias.astype(self.dtype)


class UperNetHead(nn.Module):
    """Pyramid pooling of the deepest map, then a feature pyramid network, then one classifier.

    Attributes:
        num_classes: number of classes.
        width: channels of every map in the head.
        dtype: dtype of the computation; the scores are float32.

    Source: Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding", section 3.1;
    pyramid pooling: Zhao et al. 2017, PSPNet, section 3.2.
    """

    num_classes: int
    width: int = 512
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Maps, is_training: bool = False
    ) -> Float[Array, "batch rows columns classes"]:
        """Returns scores at the resolution of the first map."""
        *finer, deepest = maps

        def convolved(values: Map, size: int, name: str) -> _NewMap:
            return ConvNormRelu(self.width, size, self.dtype, name=name)(values, is_training)

        lateral = [convolved(m, 1, f"lateral_{i + 1}") for i, m in enumerate(finer)]
        pooled = [
            resize_bilinear(
                convolved(adaptive_mean(deepest, bins), 1, f"pooled_{bins}"), deepest.shape[1:3]
            )
            for bins in _POOLED
        ]
        lateral.append(convolved(jnp.concatenate([deepest, *pooled], -1), 3, "bottleneck"))
        for index in range(len(lateral) - 1, 0, -1):
            size = lateral[index - 1].shape[1:3]
            lateral[index - 1] += resize_bilinear(lateral[index], size)
        outputs = [convolved(m, 3, f"output_{i + 1}") for i, m in enumerate(lateral[:-1])]
        outputs.append(lateral[-1])
        finest = outputs[0].shape[1:3]
        joined = jnp.concatenate([resize_bilinear(m, finest) for m in outputs], axis=-1)
        return classify(convolved(joined, 3, "fused"), self.num_classes, is_training)


class FcnHead(nn.Module):
    """The auxiliary head: one convolution and a classifier, on one map.

    Attributes:
        num_classes: number of classes.
        width: number of hidden channels.
        dtype: dtype of the computation; the scores are float32.

    Source: Long et al. 2015 (FCN); as an auxiliary loss: Zhao et al. 2017, PSPNet, section 3.3.
    """

    num_classes: int
    width: int = _AUXILIARY_WIDTH
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, values: Map, is_training: bool = False
    ) -> Float[Array, "batch rows columns classes"]:
        """Returns scores at the resolution of the map."""
        hidden = ConvNormRelu(self.width, 3, self.dtype, name="hidden")(values, is_training)
        return classify(hidden, self.num_classes, is_training)


class Segmenter(nn.Module):
    """A vision transformer with a head that scores the classes of each place.

    Attributes:
        encoder: the vision transformer, for crops of its image size.
        num_classes: number of classes.
        head: ``upernet``, with an auxiliary head; or ``linear``: a batch norm and a classifier on
            the last block's patches.
        depths: the four blocks that ``upernet`` reads, ascending.
        head_width: channels of the maps in ``upernet``.

    Source: Bao et al. 2021, BEiT, and He et al. 2022, appendix A.4 (UperNet on blocks of a vision
    transformer); Oquab et al. 2023, DINOv2 (the linear head, in its code).
    """

    encoder: ViT
    num_classes: int
    head: Literal["upernet", "linear"] = "upernet"
    depths: tuple[int, ...] = (4, 6, 8, 12)
    head_width: int = 512

    @nn.compact
    def __call__(
        self, images: Float[ArrayLike, "batch height width channels"], *, is_training: bool = False
    ) -> tuple[
        Float[Array, "batch rows columns classes"],
        Float[Array, "batch grid_rows grid_columns classes"] | None,
    ]:
        """Returns float32 scores, and those of the auxiliary head if there is one.

        The scores of ``upernet`` are four times as fine as the grid of patches; ``linear`` scores
        patches. Training needs the random streams ``drop_path`` and ``dropout``; batch statistics
        are in the collection ``batch_stats``.
        """
        dtype, depth = self.encoder.dtype, self.encoder.depth
        depths = self.depths if self.head == "upernet" else (depth,)
        features = self.encoder(images, depths=depths, normalize=False, is_training=is_training)
        patches = features.patches
        maps = tuple(patches.reshape(*patches.shape[:2], *self.encoder.grid, patches.shape[-1]))
        if self.head == "linear":
            normed = batch_norm(jnp.float32, is_training, name="norm")(maps[0])
            return _classifier(self.num_classes, name="classifier")(normed), None
        pyramid = FeaturePyramid(dtype, name="pyramid")(maps, is_training)
        upernet = UperNetHead(self.num_classes, self.head_width, dtype, name="upernet")
        auxiliary = FcnHead(self.num_classes, dtype=dtype, name="auxiliary")
        return upernet(pyramid, is_training), auxiliary(pyramid[2], is_training)


class ConvNormRelu(nn.Module):
    """A convolution without bias, batch norm and ReLU.

    Attributes:
        width: number of output channels.
        size: side of the kernel.
        dtype: dtype of the computation.
    """

    width: int
    size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, values: Map, is_training: bool = False
    ) -> Float[Array, "batch rows columns new_channels"]:
        """Applies the three; rows and columns stay the same."""
        values = nn.Conv(
            self.width,
            (self.size, self.size),
            use_bias=False,
            kernel_init=nn.initializers.kaiming_normal(),
            dtype=self.dtype,
            name="convolution",
        )(values)
        return nn.relu(batch_norm(self.dtype, is_training, name="norm")(values))


def batch_norm(dtype: DTypeLike, is_training: bool, name: str) -> nn.BatchNorm:
    """Returns a batch norm over the whole batch, on all devices, with torch's default momentum."""
    return nn.BatchNorm(
        use_running_average=not is_training, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


def classify(
    values: Map, num_classes: int, is_training: bool
) -> Float[Array, "batch rows columns classes"]:
    """Applies dropout of whole channels and a 1x1 classifier, in a module's call; float32."""
    dropped = nn.Dropout(_DROPOUT, broadcast_dims=(1, 2), deterministic=not is_training)(values)
    return _classifier(num_classes, name="classifier")(dropped)


def adaptive_mean(values: Map, bins: int) -> Float[Array, "batch bins bins channels"]:
    """Averages a map of any size over ``bins`` x ``bins`` parts, which cover it and may overlap.

    Along an axis of n places, part i has those from ``floor(i n / bins)`` up to, but not including,
    ``ceil((i + 1) n / bins)``.
    """
    values = jnp.asarray(values)
    for axis in (1, 2):
        length = values.shape[axis]
        share = np.zeros((bins, length), np.float32)
        for index in range(bins):
            begin, end = index * length // bins, -(-(index + 1) * length // bins)
            share[index, begin:end] = 1 / (end - begin)
        moved = jnp.moveaxis(values, axis, -1)
        values = jnp.moveaxis(moved @ jnp.asarray(share.T, values.dtype), -1, axis)
    return values


def resize_bilinear(
    values: Map, size: tuple[int, int]
) -> Float[Array, "batch new_rows new_columns channels"]:
    """Interpolates linearly between centres of places, without antialiasing."""
    shape = (values.shape[0], *size, values.shape[-1])
    return jax.image.resize(values, shape, "linear", antialias=False)


def _classifier(num_classes: int, name: str) -> nn.Dense:
    kernel_init = nn.initializers.normal(0.01)
    return nn.Dense(num_classes, kernel_init=kernel_init, dtype=jnp.float32, name=name)
