"""DDAE on a folder of your own images, of any number, size and kind; no labels are needed.

Command:    python -m ddae_jax.pretrain --config=configs/folder.py --workdir=runs/mine \\
                --config.data.data_dir=FOLDER
Hardware:   a GPU; with little memory add --config.batch_size=64 or
            --config.model.rematerialization=full. For a look on a CPU add --config.model.size=Ti
            --config.batch_size=32.
Expect:     a backbone fitted to your images; worth the while from some 100,000 of them on.
"""

from ml_collections import ConfigDict

from ddae_jax.config import pretrain_defaults


def get_config() -> ConfigDict:
    """ViT-S/16 on the images below ``config.data.data_dir``."""
    config = pretrain_defaults()
    config.batch_size = 256
    config.epochs = 100.0
    config.model.size = "S"
    config.data.source = "folder"
    config.checkpoint.every_epochs = 1.0
    config.log.figures_every_epochs = 10.0
    return config
