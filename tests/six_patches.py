"""Images of six patches, four of them hidden, and parameters at no special value."""

import jax
import jax.numpy as jnp
import numpy as np

# Three rows and two columns of patches, four of the six hidden.
SIZE, GRID, NUM_MASKED, PATCH, WIDTH = (6, 4), (3, 2), 4, 2, 8
MASK = np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
VISIBLE = np.stack([np.flatnonzero(~row) for row in MASK])


def always_the_same_mask(key, batch):
    """``sample_mask`` of a method that draws nothing."""
    return jnp.asarray(MASK[:batch])


def random_like(shapes, seed=0):
    """Parameters of which none is at a special value, as biases and norms are at first."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def images_of(batch=3, seed=0) -> np.ndarray:
    """Normalised images of noise."""
    return np.random.default_rng(seed).normal(size=(batch, *SIZE, 3)).astype(np.float32)


def key(seed: int = 0):
    """A random key."""
    return jax.random.key(seed)


def numpy_patches(images: np.ndarray) -> np.ndarray:
    """The pixels of each patch: row, column, channel."""
    rows, columns = GRID
    patches = images.reshape(len(images), rows, PATCH, columns, PATCH, 3)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), rows * columns, -1)
