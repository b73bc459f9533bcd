"""Any method under any supervision on CIFAR-10, with a ViT-Ti and patches of 4 pixels.

Command:    python -m ddae_jax.pretrain --config=configs/cifar10.py:mae,deep_dynamic \\
                --workdir=runs/cifar10_mae_deep_dynamic
            METHOD is ddae, mae, simmim, maskfeat, beit or beit2; SUPERVISION is last (as
            published), deep or deep_dynamic. beit and beit2 need a tokenizer first: see
            configs/cifar10_tokenizer.py.
            Add --config.data.data_dir=FOLDER if FOLDER/cifar10/3.0.2 holds the dataset already.
Hardware:   any GPU; a CPU for a few epochs (--config.model.size=micro --config.epochs=5).
Expect:     docs/evaluation.md
"""

from ml_collections import ConfigDict

from ddae_jax.config import pretrain_defaults
from ddae_jax.config.recipes import use_recipe


def get_config(cell: str = "ddae,deep_dynamic") -> ConfigDict:
    """Returns the config of one cell, ``METHOD,SUPERVISION``, of the grid."""
    config = shared()
    use_recipe(config, cell)
    if config.model.encoder_input == "visible":
        # As narrow relative to the encoder as MAE's decoder.
        config.decoder.width = 128
        config.decoder.depth = 4
        config.decoder.num_heads = 4
    if config.method == "ddae":
        config.teacher.half_life_epochs = 200.0
        config.teacher.half_life_start_epochs = 1.0
    if config.method in ("beit", "beit2"):
        config.targets.tokenizer = "runs/cifar10_tokenizer"
    if config.method == "maskfeat":
        config.targets.hog_cell = 4  # a patch has one cell, not 2 x 2
    return config


def shared() -> ConfigDict:
    """Returns the data, encoder and schedule that all cells share."""
    config = pretrain_defaults()
    config.batch_size = 512
    config.epochs = 200.0

    config.model.size = "Ti"
    config.model.image_size = (32, 32)
    config.model.patch_size = 4

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_epochs = 10.0

    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.test_split = "test"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    # Small images of one size are decoded once and augmented on the device (see
    # benchmarks/results/augmentation.json).
    config.data.in_memory = True
    config.data.augment_in = "device"

    config.checkpoint.every_epochs = 5.0
    config.log.every_steps = 20
    config.log.figures_every_epochs = 20.0
    config.evaluation.knn_every_epochs = 20.0
    config.evaluation.max_examples = 10_000
    return config
