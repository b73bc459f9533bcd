"""Linear probing of ViT-B/16 on ImageNet-1k, as MAE's authors do it: 90 epochs of the head alone.

Command:    python -m ddae_jax.finetune --config=configs/imagenet_linear_vit_b16.py \\
                --config.data.data_dir=IMAGENET --config.init_from=RUN_OR_WEIGHTS \\
                --workdir=WORKDIR --distributed
            For a probe in minutes: python -m ddae_jax.evaluate --task=linear.
Hardware:   a TPU slice or 8 GPUs.
Expect:     the PAPER reports 68.0 % top-1 with MAE (He et al. 2022, table 12). This figure is the
            paper's; this package has not reproduced it.
"""

from ml_collections import ConfigDict

from ddae_jax.config import finetune_defaults


def get_config() -> ConfigDict:
    """Returns the paper's recipe (He et al. 2022, table 10): LARS, batch norm without affine."""
    config = finetune_defaults()
    config.batch_size = 16384
    config.epochs = 90.0
    config.model.image_size = (224, 224)
    config.model.is_frozen = True
    config.model.pool = "class_token"
    config.model.drop_path_rate = 0.0
    config.head.normalization = "batch"
    config.head.init_deviation = 0.01
    config.augment.rand_augment = False
    config.augment.erasing_probability = 0.0
    config.augment.mixup = 0.0
    config.augment.cutmix = 0.0
    config.augment.label_smoothing = 0.0
    config.optimizer.kind = "lars"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_epochs = 10.0
    config.data.source = "folder"
    config.data.num_workers = 16
    config.checkpoint.every_epochs = 5.0
    return config
