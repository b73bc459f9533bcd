"""Fine-tuning on the digits with a few labels: what pretraining is worth where labels are rare.

Command:    python -m ddae_jax.finetune --config=configs/digits_finetune.py \\
                --config.init_from=runs/digits --workdir=runs/digits_finetuned
            This uses 5 labels a class; --config.data.labelled_share=0.007 uses 1.
            --config.from_scratch trains the same network from random weights.
Hardware:   two CPU cores.
Expect:     docs/recipe.md
"""

from ml_collections import ConfigDict

from ddae_jax.config import finetune_defaults


def get_config() -> ConfigDict:
    """Returns the config of a short run on 50 of the 1,442 training images."""
    config = finetune_defaults()
    config.batch_size = 50
    config.epochs = 200.0
    config.model.size = "micro"
    config.model.patch_size = 4
    config.model.dtype = "float32"
    config.model.drop_path_rate = 0.0
    config.augment.rand_augment = False
    config.augment.erasing_probability = 0.0
    config.augment.mixup = 0.0
    config.augment.cutmix = 0.0
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_epochs = 20.0
    config.optimizer.layer_decay = 0.75
    config.data.source = "digits"
    config.data.test_split = "test"
    config.data.channels = 1
    config.data.mean = (0.5,)
    config.data.std = (0.5,)
    config.data.crop_scale = (0.6, 1.0)
    config.data.flip = False  # a mirrored digit is no digit
    config.data.labelled_share = 0.035
    config.checkpoint.every_epochs = 1000.0
    config.evaluation.every_epochs = 0.0
    return config
