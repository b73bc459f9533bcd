"""MAE on ImageNet-1k with ViT-B/16, as published: 1600 epochs.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_mae_vit_b16.py \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed
            --config=configs/imagenet_mae_vit_b16.py:deep_dynamic trains MAE with deep dynamic
            supervision; with it, --config.decoder.intermediate_blocks=1 saves time.
Hardware:   as for configs/imagenet.py.
Expect:     the PAPER reports 83.6 % top-1 after fine-tuning (He et al. 2022, table 3). This figure
            is the paper's; this package has not reproduced it.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(supervision: str = "last") -> ConfigDict:
    """Returns the paper's recipe (appendix A.1)."""
    config = imagenet.get_config(f"mae,{supervision}")
    config.batch_size = 4096
    config.epochs = 1600.0
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.warmup_epochs = 40.0
    config.optimizer.clip_norm = 0.0
    config.checkpoint.keep_every = 200
    return config
