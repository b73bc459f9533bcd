"""The loader of training batches, which is resumed by the number of a step.

Global batch k is a pure function of (seed, k): the shuffled order of each epoch and the crop of
each example depend on the example's global position only. So the state of a loader is a step,
however many processes, workers and threads read. The batches of P processes, concatenated, are the
global batch that a single process would see.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from ddae_jax.data import workers
from ddae_jax.data.augment import Augment
from ddae_jax.data.background_iterator import BackgroundIterator
from ddae_jax.data.batches import Batch, local_batch_size, log_corrupt, read_options
from ddae_jax.data.images import CAUSES, CorruptImage
from ddae_jax.data.source_base import ExampleSource
from ddae_jax.data.threads import reading_threads
from ddae_jax.data.uniform_size import check_size

# So many unreadable images in a row are no accident: a disk or a whole folder is gone.
_MOST_CORRUPT_IN_A_ROW = 100
# More than there are causes of corruption, so that index and cause fit into one number.
_MOST_CAUSES = 16
# Examples in all epochs together. Grain's own endless repetition overflows in batches of one.
_ENDLESS = 2**53

_log = logging.getLogger(__name__)


class TooManyCorruptImages(RuntimeError):
    """More corrupt images than the run allows. The message counts and names them."""


class DataChanged(ValueError):
    """Other examples in the source than those that the run was trained on so far."""


class TrainLoader:
    """An endless iterator over this process's part of the shuffled, augmented global batches.

    Each batch is {"image": uint8[b, height, width, channel], "label": int32[b]}, or the arrays that
    another ``augmentation`` makes, with b = batch_size / process_count. Epochs follow each other
    without a gap: a batch may hold the last examples of one and the first of the next. An image
    that cannot be decoded is replaced by the next readable one of the source, counted, and named
    once in the log.

    Args:
        source: the examples.
        augmentation: what is done to them. It has to fit the source: ``Augmentation`` takes
            labelled images, ``JointAugmentation`` annotated ones.
        batch_size: global, over all processes.
        seed: of order and crops; not negative.
        process_index, process_count: which part of each global batch this process reads.
        num_workers: processes that read. 0 reads in threads of this process, which is enough
            unless many small images keep Python itself busy.
        num_threads: threads that read, in this process or in each worker; each makes a whole
            batch. None for ``reading_threads(source)``.
        prefetch_batches: batches that are made ahead, over all workers; at least one per thread.
        max_corrupt_share: the share of the source's images that may be undecodable, 0 to 1.
        unite: takes the codes of corrupt images that this process has met, and returns those that
            any process has met; see ``synchronize``. Needed with several processes only.

    Raises:
        ValueError: for arguments that contradict each other, and if shared memory is too small for
            the batches of the workers.
        TooManyCorruptImages: while iterating.
        ReadFailed: while iterating, if the disk or the network fails.
        OddSize: if ``augmentation`` needs images of one size and they differ; while iterating too.
        WorkerLost: while iterating, if a process that reads was killed.
    """

    def __init__(
        self,
        source: ExampleSource,
        augmentation: Augment,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
        num_threads: int | None = None,
        prefetch_batches: int = 4,
        max_corrupt_share: float = 0.01,
        unite: Callable[[Int[np.ndarray, " own"]], Int[np.ndarray, " all"]] = np.unique,
    ):
        self._batch_size = local_batch_size(batch_size, process_index, process_count)
        self._image_size = augmentation.size_of(source)
        if len(source) == 0:
            raise ValueError("the source is empty; a run needs at least one example")
        if seed < 0:
            raise ValueError(f"seed={seed}; 0 or more")
        if not 0 <= max_corrupt_share <= 1:
            raise ValueError(f"max_corrupt_share={max_corrupt_share}; a share from 0 to 1")
        num_threads = reading_threads(source) if num_threads is None else num_threads
        if num_workers < 0 or num_threads < 1 or prefetch_batches < 1:
            raise ValueError(
                f"num_workers={num_workers}, num_threads={num_threads}, "
                f"prefetch_batches={prefetch_batches}; workers from 0, the others from 1"
            )
        self._source = source
        self._augmentation = augmentation
        self._seed = seed
        self._process_index = process_index
        self._process_count = process_count
        self._num_workers = num_workers
        self._num_threads = num_threads
        self._prefetch_batches = prefetch_batches
        self._max_corrupt = max_corrupt_share * len(source)
        self._max_corrupt_share = max_corrupt_share
        self._unite = unite
        self._step = 0
        self._corrupt: dict[int, int] = {}  # index of an image -> index of its cause in CAUSES
        self._batches: BackgroundIterator[Batch] | None = None
        self._is_closed = False
        batch_bytes = self._batch_size * augmentation.num_bytes(self._image_size, source.channels)
        if problem := workers.check_shared_memory(num_workers, batch_bytes):
            _log.warning(problem)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return self.next_unless(lambda: False)

    def next_unless(self, is_over: Callable[[], bool]) -> Batch | None:
        """Waits for the next batch; returns None if ``is_over()`` becomes true before it is there.

        The batch is then what the next call returns.
        """
        if self._is_closed:
            raise ValueError("this loader is closed")
        if self._batches is None:
            dataset = self._dataset_from(self._step)
            self._batches = BackgroundIterator(
                lambda: iter(dataset), lambda batches: batches.close()
            )
        try:
            batch = self._batches.next_unless(is_over)
        except Exception as error:
            reason = workers.explain_worker_error(error, self._num_workers)
            if reason is error:
                raise
            raise reason from error
        if batch is None:
            return None
        if self._num_workers:
            # A copy, as the workers' shared memory could be unmapped during a transfer to a device.
            batch = {key: np.array(value) for key, value in batch.items()}
        self._report_corrupt(batch.pop("corrupt"))
        self._step += 1
        return batch

    @property
    def step(self) -> int:
        """The number of batches handed out, which is the index of the next one."""
        return self._step

    @property
    def corrupt_count(self) -> int:
        """The number of different images met so far that cannot be decoded."""
        return len(self._corrupt)

    @property
    def corrupt_causes(self) -> dict[str, int]:
        """The number of such images for each cause of ``ddae_jax.data.images.CAUSES``."""
        counts = Counter(CAUSES[cause] for cause in self._corrupt.values())
        return dict(sorted(counts.items()))

    def synchronize(self) -> None:
        """Shares the corrupt images among all processes, each of which has to call this.

        Raises ``TooManyCorruptImages`` in all of them, or in none.
        """
        own = np.array([_coded(*item) for item in sorted(self._corrupt.items())], np.int64)
        self._corrupt = dict(divmod(code, _MOST_CAUSES) for code in self._unite(own).tolist())
        self._check_corrupt_share()

    def get_state(self, step: int | None = None) -> dict[str, Any]:
        """Returns the state for ``set_state``, which can be written as JSON.

        Args:
            step: the step to continue with; by default that of the next batch. A caller that reads
                ahead gives an earlier one, as it has not used all batches that it was handed.

        Returns:
            The step, the indices of corrupt images, their causes, and the source's fingerprint.
        """
        corrupt = sorted(self._corrupt)
        return {
            "step": self._step if step is None else step,
            "corrupt": corrupt,
            "causes": [CAUSES[self._corrupt[index]] for index in corrupt],
            "source": self._source.fingerprint,
        }

    def set_state(self, state: dict[str, Any], allow_changes: bool = False) -> None:
        """Continues at the step of a state, without reading the batches before it.

        Args:
            state: from ``get_state``. States of older versions lack causes, or the fingerprint,
                which is then not compared.
            allow_changes: whether a source with other examples is accepted, with a warning.

        Raises:
            DataChanged: if the state is of a source with other examples.
        """
        known = state.get("source", self._source.fingerprint)
        if known != self._source.fingerprint:
            change = f"it was [{known}], and is [{self._source.fingerprint}]"
            if not allow_changes:
                raise DataChanged(
                    f"the training data is not what the run was trained on so far: {change}. Bring "
                    "the same examples back, start in another --workdir, or continue with these by "
                    "--allow_config_changes"
                )
            _log.warning("the training data has changed: %s", change)
            state = state | {"corrupt": [], "causes": []}  # whose indices mean other examples now
        self._stop_reading()
        self._step = int(state["step"])
        causes = state.get("causes", [CAUSES[0]] * len(state["corrupt"]))
        self._corrupt = {
            int(index): CAUSES.index(cause)
            for index, cause in zip(state["corrupt"], causes, strict=True)
        }

    def close(self) -> None:
        """Stops threads and worker processes, by force if they hang. It cannot be read again."""
        self._stop_reading()
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _stop_reading(self) -> None:
        """Ends threads and workers; the next batch would start them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _dataset_from(self, step: int) -> grain.IterDataset:
        """Returns this process's batches from a global step on."""
        order_seed, crop_seed = _derived_seeds(self._seed)
        first = step * self._process_count + self._process_index
        load = _LoadTrainBatch(self._source, self._augmentation, self._image_size, crop_seed)
        batches = (
            grain.MapDataset.range(len(self._source))
            .shuffle(seed=order_seed)
            .repeat(_ENDLESS // len(self._source))
            .batch(self._batch_size)
            # Before the slice, so that `load` gets the number among the batches of all processes.
            .map_with_index(load)
            .slice(slice(first, None, self._process_count))
        )
        num_readers = max(self._num_workers, 1)
        # Each thread makes a whole batch: with fewer of them, threads would be idle.
        ahead = max(-(-self._prefetch_batches // num_readers), self._num_threads)
        dataset = batches.to_iter_dataset(read_options(self._num_threads, ahead))
        if self._num_workers:
            if not flags.FLAGS.is_parsed():
                # Grain reads absl's flags, which are not parsed where no absl app runs.
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=1),
                worker_init_fn=workers.ends_with_this_process(),
            )
        return dataset

    def _report_corrupt(self, codes: Int[np.ndarray, " corrupt"]) -> None:
        """Counts and logs corrupt images that were not met before; ``codes`` are of ``_coded``."""
        for index, cause in sorted(divmod(code, _MOST_CAUSES) for code in codes.tolist()):
            if index not in self._corrupt:
                log_corrupt(self._source.name(index), CAUSES[cause])
                self._corrupt[index] = cause
        if self._process_count == 1:  # several have to stop together, in `synchronize`
            self._check_corrupt_share()

    def _check_corrupt_share(self) -> None:
        """Raises ``TooManyCorruptImages`` if more were met than are allowed."""
        if len(self._corrupt) > self._max_corrupt:
            names = ", ".join(self._source.name(index) for index in sorted(self._corrupt)[:5])
            causes = ", ".join(f"{count} {cause}" for cause, count in self.corrupt_causes.items())
            raise TooManyCorruptImages(
                f"{len(self._corrupt)} of {len(self._source)} images cannot be decoded: a share of "
                f"{len(self._corrupt) / len(self._source):.2%}, above the limit "
                f"data.max_corrupt_share={self._max_corrupt_share:.2%} ({causes}). Among them: "
                f"{names}"
            )


def _derived_seeds(seed: int) -> tuple[int, tuple[int, int]]:
    """Returns the seeds of the order (32 bits) and of the crops (128 bits).

    Grain shuffles epoch e with seed + e. With the run's own seed, the first epoch of a run with
    seed 1 would be the second one of the run with seed 0.
    """
    order, high, low = np.random.SeedSequence(seed).generate_state(3, np.uint64).tolist()
    return order % 2**32, (high, low)


@dataclass(frozen=True)
class _LoadTrainBatch:
    """Makes the local batch of some indices, in threads or workers.

    ``number`` is that of the batch, counted over the batches of all processes.
    """

    source: ExampleSource
    augmentation: Augment
    image_size: tuple[int, int]
    seed: tuple[int, int]

    def __call__(self, number: int, indices: Int[np.ndarray, " batch"]) -> Batch:
        first = number * len(indices)
        corrupt: list[int] = []
        examples = [
            self._read(first + offset, int(indices[offset]), opened, corrupt)
            for offset, opened in enumerate(self.source.open(indices))
        ]
        batch = {key: np.array([example[key] for example in examples]) for key in examples[0]}
        return batch | {"corrupt": np.array(corrupt, np.int64)}

    def _read(self, position: int, index: int, opened: Any, corrupt: list[int]) -> Batch:
        """Returns the augmented example, or that of the next image that can be decoded.

        Args:
            position: global position of the example, which decides its random numbers.
            index: of the example in the source.
            opened: the example, opened by the source.
            corrupt: to which the codes of images that cannot be decoded are added.

        Raises:
            TooManyCorruptImages: if none in a long row can be decoded.
            OddSize: if the image has another size than the others.
        """
        make_rng = functools.partial(_stream, self.seed, position)
        for tries in range(min(_MOST_CORRUPT_IN_A_ROW, len(self.source))):
            candidate = (index + tries) % len(self.source)
            chosen = self.source.open([candidate])[0] if tries else opened
            try:
                example = self.augmentation(chosen, make_rng)
            except CorruptImage as error:
                corrupt.append(_coded(candidate, CAUSES.index(error.kind)))
                last_error = error
                continue
            check_size(example["image"].shape[:2], self.image_size, self.source, candidate)
            return example
        raise TooManyCorruptImages(
            f"none of {tries + 1} images in a row can be decoded, from {self.source.name(index)} "
            f"to {self.source.name(candidate)}. The last error: {last_error}"
        )


def _coded(index: int, cause: int) -> int:
    """Returns the index of a corrupt image and that of its cause as one number, for arrays."""
    return index * _MOST_CAUSES + cause


def _stream(seed: tuple[int, int], position: int) -> np.random.Generator:
    """Returns the random generator of the example at a global position."""
    # Philox is counter-based: any stream is reached at once.
    return np.random.Generator(np.random.Philox(key=seed, counter=(0, 0, 0, position)))
