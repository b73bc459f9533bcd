"""Fine-tuning on CIFAR-10, with all labels or a share of them.

Command:    python -m ddae_jax.finetune --config=configs/cifar10_finetune.py \\
                --config.init_from=runs/cifar10 --workdir=runs/cifar10_finetuned
            Add --config.data.data_dir=FOLDER if FOLDER/cifar10/3.0.2 holds the dataset already.
            --config.data.labelled_share=0.01 uses 1 % of the labels; --config.from_scratch trains
            the same network from random weights.
Hardware:   any GPU; a CPU for a ViT-nano or ViT-micro.
Expect:     docs/finetuning.md
"""

from ml_collections import ConfigDict

from ddae_jax.config import finetune_defaults


def get_config() -> ConfigDict:
    """Returns MAE's recipe for images of 32 pixels: smaller batches, no random erasing.

    If the encoder was trained on larger images, images are enlarged to that size.
    """
    config = finetune_defaults()
    config.batch_size = 128
    config.epochs = 50.0
    config.model.size = "Ti"
    config.model.patch_size = 4
    config.model.dtype = "float32"
    config.augment.erasing_probability = 0.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.layer_decay = 0.75
    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.test_split = "test"
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.247, 0.2435, 0.2616)
    config.data.crop_scale = (0.3, 1.0)
    config.data.in_memory = True
    config.checkpoint.every_epochs = 5.0
    config.evaluation.every_epochs = 5.0
    return config
