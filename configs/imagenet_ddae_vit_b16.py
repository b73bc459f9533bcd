"""DDAE on ImageNet-1k with ViT-B/16, for 100 epochs: the paper's short schedule.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_ddae_vit_b16.py \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed
            IMAGENET/train and IMAGENET/validation hold a folder of JPEGs for each class.
Hardware:   a TPU pod slice or GPUs; without --distributed, the devices of one host.
Expect:     the PAPER reports 83.5 % top-1 after fine-tuning and 49.3 mIoU on ADE20K (Chen et al.,
            DDAE). These figures are the paper's; this package has not reproduced them.
"""

from ml_collections import ConfigDict

from ddae_jax.config import pretrain_defaults


def get_config() -> ConfigDict:
    """Returns the config of a ViT-B/16: batch 4096, 100 epochs."""
    config = pretrain_defaults()
    config.batch_size = 4096
    config.epochs = 100.0

    config.model.size = "B"
    config.mask.kind = "random"
    config.mask.ratio = 0.75

    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.warmup_epochs = 10.0

    config.data.source = "folder"
    config.data.num_workers = 16
    return config
