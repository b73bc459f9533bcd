"""Files of image features with names and labels: NumPy's ``.npz`` or Parquet."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ddae_jax.suggestions import printable
from ddae_jax.training.workdir import written_atomically


class Embedded(NamedTuple):
    """Features of some images.

    Attributes:
        features: one row per image.
        labels: class indices; -1 for an image without a label.
        names: file names, or names such as ``cifar10/test[17]``.
    """

    features: Float[np.ndarray, "images features"]
    labels: Int[np.ndarray, "images"]
    names: Sequence[str]


def write_embeddings(path: pathlib.Path, batches: Iterable[Embedded]) -> tuple[int, int]:
    """Writes all batches to a file, atomically.

    An ``.npz`` file holds ``features`` (images, width; float32), ``labels`` and ``names``. A
    Parquet file has the columns ``name``, ``label`` and ``features`` with one row per image; it is
    written batch by batch, so that the features need not fit in memory together.

    Args:
        path: the file; its suffix tells the format.
        batches: features in the order to write.

    Returns:
        The number of images, and the width of the features.

    Raises:
        ValueError: for another suffix, and if there is no image.
    """
    with written_atomically(path) as half_written:
        count, width = writer_for(path)(half_written, batches)
        if not count:
            raise ValueError("there is no image to embed")
    return count, width


def writer_for(path: pathlib.Path) -> Callable[..., tuple[int, int]]:
    """Returns the writer of files with the suffix of ``path``.

    Raises:
        ValueError: for an unknown suffix; the message names the known ones.
    """
    if path.suffix not in _WRITERS:
        raise ValueError(f"--out={path}; it is a file called *{' or *'.join(_WRITERS)}")
    return _WRITERS[path.suffix]


def _write_npz(path: pathlib.Path, batches: Iterable[Embedded]) -> tuple[int, int]:
    collected = list(batches)
    if not collected:
        return 0, 0
    features = np.concatenate([batch.features for batch in collected])
    labels = np.concatenate([batch.labels for batch in collected])
    names = np.array([name for batch in collected for name in batch.names])
    np.savez(path, features=features, labels=labels, names=names)
    return features.shape


def _write_parquet(path: pathlib.Path, batches: Iterable[Embedded]) -> tuple[int, int]:
    import pyarrow as arrow
    from pyarrow import parquet

    count, width, writer = 0, 0, None
    try:
        for batch in batches:
            width = batch.features.shape[1]
            values = arrow.array(batch.features.ravel(), arrow.float32())
            table = arrow.table(
                {
                    "name": arrow.array(list(map(printable, batch.names)), arrow.string()),
                    "label": arrow.array(batch.labels, arrow.int32()),
                    "features": arrow.FixedSizeListArray.from_arrays(values, width),
                }
            )
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            count += len(table)
    finally:
        if writer is not None:
            writer.close()
    return count, width


_WRITERS: Mapping[str, Callable[..., tuple[int, int]]] = MappingProxyType(
    {".npz": _write_npz, ".parquet": _write_parquet}
)
