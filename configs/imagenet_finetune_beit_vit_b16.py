"""Fine-tuning ViT-B/16 on ImageNet-1k: BEiT's recipe, 100 epochs.

Command:    python -m ddae_jax.finetune --config=configs/imagenet_finetune_beit_vit_b16.py \\
                --config.data.data_dir=IMAGENET --config.init_from=RUN_OR_WEIGHTS \\
                --workdir=WORKDIR --distributed
            For BEiT v2 after 1600 epochs add --config.optimizer.learning_rate=1.25e-4
            --config.optimizer.layer_decay=0.6 --config.model.drop_path_rate=0.2. Files of BEiT's
            authors that end in pt22k expect pixels in [-1, 1]: add --config.data.mean=0.5,0.5,0.5
            --config.data.std=0.5,0.5,0.5.
Hardware:   a TPU slice or 8 GPUs; --config.optimizer.micro_batches=4 needs a quarter of the memory.
Expect:     the PAPERS report 83.2 % top-1 with BEiT (Bao et al. 2021, table 1), 85.5 % with BEiT v2
            (Peng et al. 2022, table 1), both pretrained on ImageNet-1k. These figures are the
            papers'; this package has not reproduced them.
"""

from ml_collections import ConfigDict

from configs import imagenet_finetune_vit_b16


def get_config() -> ConfigDict:
    """Returns the recipe of the released command for pretrained encoders (microsoft/unilm, beit).

    That command is for encoders without intermediate fine-tuning. It lies within the paper's recipe
    (Bao et al. 2021, table 13 of the version of 2022), except for repeated augmentation, which the
    released code lacks too. The released code gives each block its own table of relative positions,
    which starts as the shared one; here it stays shared. It is decayed, as there.
    """
    config = imagenet_finetune_vit_b16.get_config()
    config.model.positions = "none"
    config.model.relative_positions = "shared"
    config.model.layer_scale = 0.1
    config.model.has_key_bias = False
    config.optimizer.learning_rate = 1e-3  # 4e-3 for 1024 images
    config.optimizer.warmup_epochs = 20.0
    config.optimizer.decay_also = "relative_positions"
    return config
