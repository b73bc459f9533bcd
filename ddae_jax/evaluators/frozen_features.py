"""The tasks knn, linear, few_shot and depths: how well frozen features tell classes apart."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from absl import flags as absl_flags
from jaxtyping import PyTree

from ddae_jax.builders import build
from ddae_jax.builders.networks import untrained_encoder_params
from ddae_jax.builders.pretrained import restore_encoder
from ddae_jax.config import to_plain
from ddae_jax.evaluation.features import cached, raw_pixel_size
from ddae_jax.evaluation.few_shot import NUM_DRAWS, few_shot_accuracies
from ddae_jax.evaluation.labelled_images import Examples, LabelledImages, Predict
from ddae_jax.evaluators.run_folder import Run, draw, open_run, where_the_data_is
from ddae_jax.figures.depths import depths_figure, depths_table
from ddae_jax.models.vit import SIZES
from ddae_jax.training.multihost import all_or_none

PER_CLASS = (1, 10)
"""Labelled images of each class in the task few_shot."""


@dataclasses.dataclass(frozen=True)
class ReadoutSpec:
    """Which features are evaluated: whose, of which checkpoint, after which block, pooled how."""

    step: int
    encoder: str
    depth: int
    pool: str
    limit: int


@dataclasses.dataclass(frozen=True)
class FrozenFeatures:
    """The features of a run's images, of its encoder and of what that is compared with.

    Attributes:
        run: that is evaluated.
        params: of its encoder.
        saved_at: when they were saved, nanoseconds.
        readout: of which features.
        images: labelled ones.
    """

    run: Run
    params: PyTree
    saved_at: int
    readout: ReadoutSpec
    images: LabelledImages

    @classmethod
    def of(cls, flags: absl_flags.FlagValues) -> "FrozenFeatures":
        """What the flags ask for. Raises ``ValueError`` or ``OSError`` for what is not there."""
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
        images = where_the_data_is(
            build.build_labelled_images, config, run.mesh, limit=readout.limit or None
        )
        return cls(run, params, saved_at, readout, images)

    def trained(self) -> tuple[Examples, Examples]:
        """Features of the run's encoder."""
        key = dataclasses.asdict(self.readout) | {"saved_at": self.saved_at}
        key |= {"dtype": self.run.config.model.dtype}
        return self._cached(key, lambda: self._features(self.params))

    def untrained(self) -> tuple[Examples, Examples]:
        """Features of the same network as it started."""
        config = self.run.config
        key = dataclasses.asdict(self.readout) | {
            "encoder": "untrained",
            "step": 0,
            "seed": config.seed,
            "model": to_plain(config.model),
        }
        return self._cached(key, lambda: self._features(untrained_encoder_params(config)))

    def pixels(self) -> tuple[Examples, Examples]:
        """Raw pixels."""
        return self._cached({"encoder": "none", "limit": self.readout.limit}, self.images.pixels)

    def at(self, depth: int) -> "FrozenFeatures":
        """The same, read after another block."""
        return dataclasses.replace(self, readout=dataclasses.replace(self.readout, depth=depth))

    def _features(self, params: PyTree) -> tuple[Examples, Examples]:
        encode = build.build_encode(
            self.run.config, self.run.mesh, depth=self.readout.depth, pool=self.readout.pool
        )
        return self.images.features(encode, params)

    def _cached(self, key: dict, compute: Callable) -> tuple[Examples, Examples]:
        config = self.run.config
        key = key | {"data": to_plain(config.data), "image_size": list(config.model.image_size)}
        key |= {"examples": self.images.fingerprint}
        key |= {"view": dataclasses.asdict(build.build_view(config))}
        return cached(self.run.workdir.features, key, compute)


def classify(task: str, flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Accuracy of ``knn`` or ``linear`` on the features, and on the two baselines'."""
    frozen = FrozenFeatures.of(flags)
    config = frozen.run.config
    predict = build.build_predict(config, task)
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
    """Accuracy of a linear probe that learns from 1 and 10 images of each class.

    Of several draws of them; the mean and the standard deviation.
    """
    frozen = FrozenFeatures.of(flags)
    sets = {
        "accuracy": frozen.trained(),
        "untrained": frozen.untrained(),
        "raw_pixels": frozen.pixels(),
    }
    per_class = {}
    for count in PER_CLASS:
        found = {
            name: few_shot_accuracies(*examples, frozen.images.num_classes, count)
            for name, examples in sets.items()
        }
        per_class[str(count)] = {
            name: {"mean": float(np.mean(draws)), "std": float(np.std(draws))}
            for name, draws in found.items()
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
    """Accuracy of ``knn`` and ``linear`` on the features after each block, in one figure."""
    frozen = FrozenFeatures.of(flags)
    config = frozen.run.config
    predictors: dict[str, Predict] = {
        name: build.build_predict(config, name) for name in ("knn", "linear")
    }
    rows = {f"{name}{kind}": [] for kind in ("", "_untrained") for name in predictors}
    every_depth = range(1, SIZES[config.model.size].depth + 1)
    for depth in every_depth:
        here = frozen.at(depth)
        for kind, examples in (("", here.trained()), ("_untrained", here.untrained())):
            for name, predict in predictors.items():
                rows[f"{name}{kind}"].append(here.images.accuracy(predict, *examples))
    pixels = frozen.pixels()
    levels = {
        f"{name}_raw_pixels": frozen.images.accuracy(predict, *pixels)
        for name, predict in predictors.items()
    }
    figure = draw(
        frozen.run.workdir.figures / "depths.png", depths_figure, list(every_depth), rows, levels
    )
    told = dataclasses.asdict(frozen.readout)
    told.pop("depth")
    result = {"task": "depths", **told, "depths": list(every_depth), **rows, **levels}
    result |= {**_sizes(pixels), "figure": figure}
    return f"{depths_table(list(every_depth), rows)}\nfigure: {figure or 'none'}", result


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
        shown = "".join(f"{cell['mean']:9.2%} ±{cell['std']:6.2%}" for cell in cells)
        lines.append(f"  {name:18s}{shown}")
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
