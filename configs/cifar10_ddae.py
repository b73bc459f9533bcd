"""DDAE on CIFAR-10, with a ViT-Ti and patches of 4 pixels: a study that a laptop can run.

Command:    python -m ddae_jax.pretrain --config=configs/cifar10_ddae.py --workdir=runs/cifar10
            with --config.data.data_dir=FOLDER if FOLDER/cifar10/3.0.2 holds the dataset already
Hardware:   any GPU; a CPU for a few epochs (--config.epochs=5).
Expect:     docs/evaluation.md
"""

from ml_collections import ConfigDict

from ddae_jax.config import pretrain_defaults


def get_config() -> ConfigDict:
    """The config of the study."""
    config = pretrain_defaults()
    config.batch_size = 512
    config.epochs = 200.0

    config.model.size = "Ti"
    config.model.image_size = (32, 32)
    config.model.patch_size = 4
    config.mask.ratio = 0.65

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_epochs = 10.0

    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.test_split = "test"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    # Small images of one size: decoded once, augmented on the device (see
    # benchmarks/results/augmentation.json).
    config.data.in_memory = True
    config.data.augment_in = "device"

    config.checkpoint.every_epochs = 5.0
    config.log.every_steps = 20
    config.log.figures_every_epochs = 20.0
    config.evaluation.knn_every_epochs = 20.0
    config.evaluation.max_examples = 10_000
    return config
