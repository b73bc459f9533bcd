"""SimMIM on ImageNet-1k with ViT-B/16: 800 epochs.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_simmim_vit_b16.py \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed
            --config=configs/imagenet_simmim_vit_b16.py:deep_dynamic for deep dynamic supervision.
Hardware:   as for configs/imagenet.py.
Expect:     the PAPER reports 83.8 % top-1 after fine-tuning (Xie et al. 2022, table 6). This figure
            is the paper's; this package has not reproduced it. The paper divides the learning rate
            by 10 at epoch 700; here it follows a cosine.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(supervision: str = "last") -> ConfigDict:
    """Returns the authors' recipe for ViT-B."""
    config = imagenet.get_config(f"simmim,{supervision}")
    config.epochs = 800.0
    config.model.positions = "none"
    config.model.relative_positions = "shared"
    config.model.layer_scale = 0.1
    config.model.has_key_bias = False
    config.model.drop_path_rate = 0.1
    config.optimizer.learning_rate = 5e-5
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 5.0
    config.data.crop_scale = (0.67, 1.0)
    config.checkpoint.keep_every = 100
    return config
