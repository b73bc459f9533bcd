"""BEiT on ImageNet-1k with ViT-B/16: 800 epochs, over the tokens of a VQ-KD tokenizer.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_beit_vit_b16.py \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed \\
                --config.targets.tokenizer=TOKENIZER
            TOKENIZER is the workdir of a run of configs/imagenet_tokenizer_vit_b16.py.
            --config=configs/imagenet_beit_vit_b16.py:deep_dynamic for deep dynamic supervision.
Hardware:   as for configs/imagenet.py.
Expect:     the PAPER reports 83.2 % top-1 after fine-tuning (Bao et al. 2021, table 1), over the
            tokens of DALL-E's tokenizer and with colour jitter, neither of which is here. This
            figure is the paper's; this package has not reproduced it.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config(supervision: str = "last", method: str = "beit") -> ConfigDict:
    """Returns the paper's recipe (appendix)."""
    config = imagenet.get_config(f"{method},{supervision}")
    config.epochs = 800.0
    config.model.drop_path_rate = 0.1
    config.mask.ratio = 75 / 196
    config.optimizer.learning_rate = 1.875e-4  # 1.5e-3 for 2048 images
    config.optimizer.end_learning_rate = 1.25e-6
    config.optimizer.b2 = 0.999
    config.data.crop_scale = (0.08, 1.0)
    config.checkpoint.keep_every = 100
    return config
