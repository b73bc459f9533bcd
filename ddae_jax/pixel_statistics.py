"""Computes the mean and the deviation of each channel of a config's training images.

    python -m ddae_jax.pixel_statistics --config=configs/folder.py \\
        --config.data.data_dir=FOLDER --config.data.channels=12

takes the arguments of the job that is to come, and prints data.mean and data.std to add to them. It
is for images of other than three channels, or such that look unlike photographs. The last line is
one JSON object.
"""

import json
from collections.abc import Sequence

from absl import flags as absl_flags

from ddae_jax.builders import build
from ddae_jax.config.checks import check_config
from ddae_jax.data.pixel_statistics import pixel_statistics
from ddae_jax.jobs import cli

_LEAST_STD = 0.001  # what data.std may be: a channel that is the same everywhere would have 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with cli.bad_input_is_explained():
        usage = f"ddae_jax.pixel_statistics {__doc__}"
        flags, _ = cli.read_config_flags(argv, usage, _define_flags, None)
        config = flags.config
        if config.job == "segment":
            raise ValueError(
                "ddae_jax.pixel_statistics takes configs of ddae_jax.pretrain and ddae_jax.finetune"
            )
        if flags.limit < 1:
            raise ValueError(f"--limit={flags.limit}; at least 1 image")
        channels = config.data.channels
        with config.unlocked():
            # Asked for here, so that what is given, or by default, need not fit.
            config.data.mean, config.data.std = (0.5,) * channels, (0.5,) * channels
            config.data.in_memory = False
        check_config(config)
        source = build.build_source(config, config.data.train_split)
        found = pixel_statistics(source, flags.limit)
    mean = [round(value, 4) for value in found.mean]
    std = [max(round(value, 4), _LEAST_STD) for value in found.std]
    print(f"of {found.num_images:,} of {len(source):,} images, as values are divided by 255:")
    print(f"--config.data.mean={_joined(mean)} --config.data.std={_joined(std)}")
    print(json.dumps({"mean": mean, "std": std, "images": found.num_images}))
    return 0


def _joined(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _define_flags(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_integer(
        "limit", 10_000, "At most so many images, spread evenly.", flag_values=flags
    )


if __name__ == "__main__":
    cli.run(main)
