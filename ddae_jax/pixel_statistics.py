"""Computes the mean and the standard deviation of each channel of a config's training images.

    python -m ddae_jax.pixel_statistics --config=configs/folder.py \\
        --config.data.data_dir=FOLDER --config.data.channels=12

takes the arguments of the planned training job and prints data.mean and data.std to add to them. It
is meant for images that do not have three channels or do not look like photographs. The last line
is one JSON object.
"""

from ddae_jax.jobs.commands import answer_help, define_pixel_statistics, usage

if __name__ == "__main__":
    answer_help("pixel_statistics", __doc__)  # before the imports below, which take seconds

import json
from collections.abc import Sequence

from ddae_jax.builders.data import build_source
from ddae_jax.config.checks import check_config
from ddae_jax.data.pixel_statistics import pixel_statistics
from ddae_jax.jobs import cli, exits

_MIN_STD = 0.001  # the least that data.std may be: a constant channel would have 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with exits.explain_bad_input():
        text = usage("pixel_statistics", __doc__)
        flags, _ = cli.read_config_flags(argv, text, define_pixel_statistics, None)
        config = flags.config
        if config.job == "segment":
            raise ValueError(
                "ddae_jax.pixel_statistics takes configs of ddae_jax.pretrain and ddae_jax.finetune"
            )
        if flags.limit < 1:
            raise ValueError(f"--limit={flags.limit}; at least 1 image")
        channels = config.data.channels
        with config.unlocked():
            # Overwritten so that given or default values need not fit the number of channels.
            config.data.mean, config.data.std = (0.5,) * channels, (0.5,) * channels
            config.data.in_memory = False
        check_config(config)
        source = build_source(config, config.data.train_split)
        statistics = pixel_statistics(source, flags.limit)
    mean = [round(value, 4) for value in statistics.mean]
    std = [max(round(value, 4), _MIN_STD) for value in statistics.std]
    print(f"of {statistics.num_images:,} of {len(source):,} images, as values are divided by 255:")
    print(f"--config.data.mean={_joined(mean)} --config.data.std={_joined(std)}")
    print(json.dumps({"mean": mean, "std": std, "images": statistics.num_images}))
    return 0


def _joined(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    exits.run(main)
