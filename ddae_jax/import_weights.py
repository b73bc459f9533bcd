"""Makes a workdir of published weights, as if they had been pretrained here.

    python -m ddae_jax.import_weights --config=configs/imagenet.py:mae \\
        --workdir=runs/mae --config.init_from=mae_pretrain_vit_base.pth \\
        --config.data.data_dir=IMAGENET

``init_from`` is a folder of timm or transformers, or the authors' file. It tells the architecture,
the size of the images, how they are cut and normalised, and how features are pooled, whatever the
config file has; the log lists it, and --config.KEY=VALUE changes it. The workdir can be evaluated
by every task of ddae_jax.evaluate, compared with other runs, exported and fine-tuned; the config
says on which images. To pretrain further, give the weights as ``--config.init_from`` of
ddae_jax.pretrain instead.
"""

from ddae_jax.jobs.commands import answer_help, define_import_weights, usage

if __name__ == "__main__":
    answer_help("import_weights", __doc__)  # before the imports below, which take seconds

import logging
from collections.abc import Sequence

import jax

from ddae_jax.builders.initialization import inherit_all, initial_params
from ddae_jax.builders.networks import untrained_encoder_params
from ddae_jax.config import to_plain
from ddae_jax.config.checks import check_config
from ddae_jax.config.schema import flatten
from ddae_jax.data.view import USUAL_SHARE
from ddae_jax.jobs import cli, devices, exits
from ddae_jax.jobs.start_checks import absolute
from ddae_jax.training.checkpoint import Checkpoints
from ddae_jax.training.workdir import Workdir

_log = logging.getLogger("ddae_jax.import_weights")  # by python -m, __name__ is another


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with exits.explain_bad_input():
        text = usage("import_weights", __doc__)
        flags, given = cli.read_config_flags(argv, text, define_import_weights)
        config = flags.config
        check_config(config)
        devices.start_devices(is_distributed=False)
        if not config.init_from:
            raise ValueError("--config.init_from=WEIGHTS is missing; it says what to import")
        if config.init_decoder:
            raise ValueError(
                "init_decoder=True is for ddae_jax.pretrain; what is imported is an encoder alone"
            )
        for key in ("data.data_dir", "init_from"):
            config.update_from_flattened_dict({key: absolute(flatten(config)[key])})
        workdir = Workdir(flags.workdir)
        workdir.check_is_a_run_or_empty()
        if workdir.has_checkpoint():
            raise ValueError(f"--workdir={workdir.path} holds a run already; give another")
        pretrained = inherit_all(config, given)
        # Published weights are of photographs, where nothing else is known.
        config.evaluation.crop_share = config.evaluation.crop_share or USUAL_SHARE
        imported = initial_params(config, pretrained)["encoder"]
        workdir.claim()
        workdir.write_trained_size(pretrained.module.image_size)
        # What weights need not have, such as a mask token, is fresh.
        params = untrained_encoder_params(config) | imported
        workdir.write_config(to_plain(config))
        with Checkpoints(workdir.checkpoints, keep_last=1) as checkpoints:
            checkpoints.save({"params": {"encoder": params}}, 0, {})
            checkpoints.wait()
        workdir.release()
    num_values = sum(leaf.size for leaf in jax.tree.leaves(imported))
    _log.info("%s: an encoder of %s parameters", workdir.path, f"{num_values:,}")
    return 0


if __name__ == "__main__":
    exits.run(main)
