"""Fine-tuning on a folder of your own images, in one folder per class.

Command:    python -m ddae_jax.finetune --config=configs/folder_finetune.py \\
                --config.data.data_dir=FOLDER --config.init_from=RUN_OR_WEIGHTS \\
                --workdir=runs/mine_finetuned
            FOLDER/train and FOLDER/validation hold a folder of images for each class. If they have
            other names, add --config.data.test_split=val or --config.data.train_split=NAME.
            --config.data.labelled_share=0.1 uses a tenth of the labels; --config.from_scratch
            trains the same network from random weights.
Hardware:   a GPU; with little memory add --config.optimizer.micro_batches=4. A CPU for a ViT-Ti.
Expect:     docs/finetuning.md has what pretraining was worth on CIFAR-10.
"""

from ml_collections import ConfigDict

from ddae_jax.config import finetune_defaults


def get_config() -> ConfigDict:
    """Returns MAE's recipe in smaller batches, at the image size of the pretraining."""
    config = finetune_defaults()
    config.batch_size = 128
    config.epochs = 50.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.layer_decay = 0.75
    config.data.source = "folder"
    config.checkpoint.every_epochs = 5.0
    config.evaluation.every_epochs = 5.0
    return config
