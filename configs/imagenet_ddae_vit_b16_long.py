"""DDAE on ImageNet-1k with ViT-B/16, on a long schedule of 800 epochs.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_ddae_vit_b16_long.py \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed
Hardware:   as for configs/imagenet_ddae_vit_b16.py.
Expect:     the PAPER reports 84.3 % top-1 after fine-tuning, with its long schedule (Chen et al.,
            DDAE). This figure is the paper's; this package has not reproduced it.
"""

from ml_collections import ConfigDict

from configs import imagenet_ddae_vit_b16


def get_config() -> ConfigDict:
    """Returns the config of the 100-epoch run, eight times as long."""
    config = imagenet_ddae_vit_b16.get_config()
    config.epochs = 800.0
    config.optimizer.warmup_epochs = 40.0
    config.teacher.half_life_epochs = 800.0
    config.teacher.half_life_start_epochs = 4.0
    config.checkpoint.keep_every = 100
    return config
