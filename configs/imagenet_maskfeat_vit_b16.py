"""MaskFeat on ImageNet-1k with ViT-B/16, as published: 1600 epochs.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_maskfeat_vit_b16.py \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed
            --config=configs/imagenet_maskfeat_vit_b16.py:deep_dynamic for deep dynamic supervision.
Hardware:   as for configs/imagenet.py.
Expect:     the PAPER reports 84.0 % top-1 after fine-tuning (Wei et al. 2022). This figure is the
            paper's; this package has not reproduced it.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(supervision: str = "last") -> ConfigDict:
    """Returns the paper's recipe for images."""
    config = imagenet.get_config(f"maskfeat,{supervision}")
    config.epochs = 1600.0
    config.model.positions = "learned"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_epochs = 30.0
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 0.02
    config.data.crop_scale = (0.5, 1.0)
    config.checkpoint.keep_every = 200
    return config
