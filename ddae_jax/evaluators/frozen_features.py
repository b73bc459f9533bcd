"""Tasks knn, linear, few_shot and depths: accuracies of classifiers on frozen features."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags as absl_flags
from jaxtyping import PyTree

from ddae_jax.builders.data import build_view
from ddae_jax.builders.evaluation import build_encode, build_labelled_images, build_predict
from ddae_jax.builders.networks import untrained_encoder_params
from ddae_jax.builders.restore import restore_encoder
from ddae_jax.config import to_plain
from ddae_jax.evaluation.features import cached, raw_pixel_size
from ddae_jax.evaluation.few_shot import NUM_DRAWS, few_shot_accuracies
from ddae_jax.evaluation.labelled_images import Examples, LabelledImages, Predict
from ddae_jax.evaluators.run_folder import Run, draw, open_run, with_data_dir_hint
from ddae_jax.figures.depths import depths_figure, depths_table
from ddae_jax.models.sizes import SIZES
from ddae_jax.training.multihost import all_or_none

PER_CLASS = (1, 10)
"""Numbers of labelled images per class in the task few_shot."""


@dataclasses.dataclass(frozen=True)
class ReadoutSpec:
    """Choice of features to evaluate.

    Attributes:
        step: step of the checkpoint.
        encoder: name of the encoder, such as ``student``.
        depth: block after which features are read.
        pool: pooling of patches; see :data:`ddae_jax.evaluation.features.Pool`.
        limit: number of images of each set that are used; 0 for all.
    """

    step: int
    encoder: str
    depth: int
    pool: str
    limit: int


@dataclasses.dataclass(frozen=True)
class FrozenFeatures:
    """Features of a run's images: of its encoder, of the untrained encoder, and raw pixels.

    Each set of features is computed once, and cached in the run's folder.

    Attributes:
        run: run that is evaluated.
        params: parameters of its encoder.
        saved_at: time at which the parameters were saved, nanoseconds since 1970.
        readout: choice of features.
        images: labelled training and test images.
    """

    run: Run
    params: PyTree
    saved_at: int
    readout: ReadoutSpec
    images: LabelledImages

    @classmethod
    def of(cls, flags: absl_flags.FlagValues) -> "FrozenFeatures":
        """Restores the encoder, and opens the images, that the flags of the command name.

        Raises:
            ValueError: if a flag does not fit the run.
            OSError: if the run, a checkpoint or the data is not there.
        """
        with all_or_none():
            run = open_run(flags.workdir, "workdir", flags)
        config = run.config
        params, step, saved_at = restore_encoder(run.workdir, config, run.mesh, flags.step)
        readout = ReadoutSpec(
            step,
            config.evaluation.encoder,
            config.evaluation.depth or SIZES[config.model.size].depth,
            config.evaluation.pool,
            flags.limit,
        )
        images = with_data_dir_hint(
            build_labelled_images, config, run.mesh, limit=readout.limit or None
        )
        return cls(run, params, saved_at, readout, images)

    def trained(self) -> tuple[Examples, Examples]:
        """Returns features of the run's encoder, for training and test images."""
        key = dataclasses.asdict(self.readout) | {"saved_at": self.saved_at}
        key |= {"dtype": self.run.config.model.dtype}
        return self._cached(key, lambda: self._features(self.params))

    def untrained(self) -> tuple[Examples, Examples]:
        """Returns features of the same encoder before training."""
        config = self.run.config
        key = dataclasses.asdict(self.readout) | {
            "encoder": "untrained",
            "step": 0,
            "seed": config.seed,
            "model": to_plain(config.model),
        }
        return self._cached(key, lambda: self._features(untrained_encoder_params(config)))

    def pixels(self) -> tuple[Examples, Examples]:
        """Returns raw pixels as features."""
        return self._cached({"encoder": "none", "limit": self.readout.limit}, self.images.pixels)

    def at(self, depth: int) -> "FrozenFeatures":
        """Returns the same, with features read after another block."""
        return dataclasses.replace(self, readout=dataclasses.replace(self.readout, depth=depth))

    def _features(self, params: PyTree) -> tuple[Examples, Examples]:
        encode = build_encode(
            self.run.config, self.run.mesh, depth=self.readout.depth, pool=self.readout.pool
        )
        return self.images.features(encode, params)

    def _cached(self, key: dict, compute: Callable) -> tuple[Examples, Examples]:
        config = self.run.config
        key = key | {"data": to_plain(config.data), "image_size": list(config.model.image_size)}
        key |= {"examples": self.images.fingerprint}
        key |= {"view": dataclasses.asdict(build_view(config))}
        return cached(self.run.workdir.features, key, compute)


def classify(task: str, flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Measures the accuracy of a classifier on the features, and on those of two baselines.

    The baselines are the untrained encoder and raw pixels.

    Args:
        task: ``knn`` or ``linear``.
        flags: flags of the command.

    Returns:
        A table, and the accuracies as plain values.

    Raises:
        ValueError, OSError: as :meth:`FrozenFeatures.of` does.
    """
    frozen = FrozenFeatures.of(flags)
    config = frozen.run.config
    predict = build_predict(config, task)
    trained = frozen.trained()
    result = {
        "task": task,
        **dataclasses.asdict(frozen.readout),
        "accuracy": frozen.images.accuracy(predict, *trained),
        "untrained": frozen.images.accuracy(predict, *frozen.untrained()),
        "raw_pixel_size": list(raw_pixel_size(config.model.image_size)),
        "raw_pixels": frozen.images.accuracy(predict, *frozen.pixels()),
        **_sizes(trained),
    }
    if task == "knn":
        result |= {"k": config.evaluation.k, "temperature": config.evaluation.temperature}
    return _accuracy_table(task, result), result


def few_shot(flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Measures the accuracy of linear probes that learn from 1 and 10 images of each class.

    Args:
        flags: flags of the command.

    Returns:
        A table, and, as plain values, mean and standard deviation over several draws of images.

    Raises:
        ValueError, OSError: as :meth:`FrozenFeatures.of` does.
    """
    frozen = FrozenFeatures.of(flags)
    sets = {
        "accuracy": frozen.trained(),
        "untrained": frozen.untrained(),
        "raw_pixels": frozen.pixels(),
    }
    per_class = {}
    for count in PER_CLASS:
        accuracies = {
            name: few_shot_accuracies(*examples, frozen.images.num_classes, count)
            for name, examples in sets.items()
        }
        per_class[str(count)] = {
            name: {"mean": float(np.mean(draws)), "std": float(np.std(draws))}
            for name, draws in accuracies.items()
        }
    result = {
        "task": "few_shot",
        **dataclasses.asdict(frozen.readout),
        "num_draws": NUM_DRAWS,
        "per_class": per_class,
        **_sizes(sets["accuracy"]),
    }
    return _few_shot_table(result), result


def depths(flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Measures and draws the accuracy of ``knn`` and ``linear`` on the features after each block.

    Args:
        flags: flags of the command.

    Returns:
        A table, and the accuracies as plain values.

    Raises:
        ValueError, OSError: as :meth:`FrozenFeatures.of` does.
    """
    frozen = FrozenFeatures.of(flags)
    config = frozen.run.config
    predictors: dict[str, Predict] = {
        name: build_predict(config, name) for name in ("knn", "linear")
    }
    rows = {f"{name}{kind}": [] for kind in ("", "_untrained") for name in predictors}
    every_depth = list(range(1, SIZES[config.model.size].depth + 1))
    for depth in every_depth:
        features = frozen.at(depth)
        for kind, examples in (("", features.trained()), ("_untrained", features.untrained())):
            for name, predict in predictors.items():
                rows[f"{name}{kind}"].append(features.images.accuracy(predict, *examples))
    pixels = frozen.pixels()
    levels = {
        f"{name}_raw_pixels": frozen.images.accuracy(predict, *pixels)
        for name, predict in predictors.items()
    }
    figure = draw(
        frozen.run.workdir.figures / "depths.png", depths_figure, every_depth, rows, levels
    )
    readout = dataclasses.asdict(frozen.readout)
    readout.pop("depth")
    result = {"task": "depths", **readout, "depths": every_depth, **rows, **levels}
    result |= {**_sizes(pixels), "figure": figure}
    return f"{depths_table(every_depth, rows)}\nfigure: {figure or 'none'}", result


def _sizes(examples: tuple[Examples, Examples]) -> dict[str, int]:
    train, test = examples
    return {"num_train": len(train[1]), "num_test": len(test[1])}


def _few_shot_table(result: dict) -> str:
    names = {"accuracy": "trained", "untrained": "untrained network", "raw_pixels": "raw pixels"}
    lines = [
        f"accuracy on {result['num_test']:,} images of a linear probe on a few of each class, mean "
        f"and standard deviation of {result['num_draws']} draws",
        "  " + " " * 18 + "".join(f"{count + ' of each':>16s}" for count in result["per_class"]),
    ]
    for key, name in names.items():
        cells = [row[key] for row in result["per_class"].values()]
        columns = "".join(f"{cell['mean']:9.2%} ±{cell['std']:6.2%}" for cell in cells)
        lines.append(f"  {name:18s}{columns}")
    return "\n".join(lines)


def _accuracy_table(task: str, result: dict) -> str:
    title = {"knn": "k-NN", "linear": "linear probe"}[task]
    trained = f"trained ({result['encoder']}, step {result['step']}, depth {result['depth']})"
    rows = {
        trained: result["accuracy"],
        "untrained network": result["untrained"],
        _raw_pixels(result["raw_pixel_size"]): result["raw_pixels"],
    }
    width = max(map(len, rows))
    lines = [
        f"{title} accuracy on {result['num_test']:,} images ({result['num_train']:,} to learn)"
    ]
    return "\n".join(lines + [f"  {name:{width}s}  {value:6.2%}" for name, value in rows.items()])


def _raw_pixels(size: Sequence[int]) -> str:
    height, width = size
    return f"raw pixels ({height} x {width})"
