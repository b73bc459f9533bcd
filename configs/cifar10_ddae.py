"""DDAE on CIFAR-10, with a ViT-Ti and patches of 4 pixels: a study that a laptop can run.

Command:    python -m ddae_jax.pretrain --config=configs/cifar10_ddae.py --workdir=runs/cifar10
            Add --config.data.data_dir=FOLDER if FOLDER/cifar10/3.0.2 holds the dataset already.
Hardware:   any GPU; a CPU for a few epochs (--config.epochs=5).
Expect:     docs/evaluation.md
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """Returns the config of configs/cifar10.py for DDAE."""
    return cifar10.get_config("ddae,deep_dynamic")
