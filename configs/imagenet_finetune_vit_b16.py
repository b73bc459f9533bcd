"""Fine-tuning ViT-B/16 on ImageNet-1k: MAE's recipe, 100 epochs.

Command:    python -m ddae_jax.finetune --config=configs/imagenet_finetune_vit_b16.py \\
                --config.data.data_dir=IMAGENET --config.init_from=RUN_OR_WEIGHTS \\
                --workdir=WORKDIR --distributed
            IMAGENET/train and IMAGENET/validation hold a folder of JPEGs for each class.
Hardware:   a TPU slice or 8 GPUs; --config.optimizer.micro_batches=4 needs a quarter of the memory.
Expect:     the PAPERS report 83.6 % top-1 with MAE (He et al. 2022, table 3), 83.5 % with DDAE
            after 100 epochs of pretraining (Chen et al.). These figures are the papers'; this
            package has not reproduced them.
"""

from ml_collections import ConfigDict

from ddae_jax.config import finetune_defaults


def get_config() -> ConfigDict:
    """Returns the recipe of the released command (FINETUNE.md of facebookresearch/mae).

    What the command leaves out are the defaults of its code.

    The paper (He et al. 2022, table 9) has a learning rate of 1e-3, a layer-wise decay of 0.75 and
    no random erasing.
    """
    config = finetune_defaults()
    config.batch_size = 1024
    config.epochs = 100.0
    config.optimizer.learning_rate = 5e-4
    config.optimizer.end_learning_rate = 2.5e-7  # 1e-6 for 1024 images
    config.optimizer.layer_decay = 0.65
    config.optimizer.warmup_epochs = 5.0
    config.model.image_size = (224, 224)
    config.model.drop_path_rate = 0.1
    config.data.source = "folder"
    config.data.num_workers = 16
    config.checkpoint.every_epochs = 5.0
    return config
