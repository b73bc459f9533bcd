"""Any method on a folder of your own images, of any number, size and kind, without labels.

Command:    python -m ddae_jax.pretrain --config=configs/folder.py --workdir=runs/mine \\
                --config.data.data_dir=FOLDER
            This runs DDAE; --config=configs/folder.py:METHOD,SUPERVISION takes the methods and
            supervisions of configs/cifar10.py.
Hardware:   a GPU; with little memory add --config.batch_size=64 or
            --config.model.rematerialization=full. For a look on a CPU add --config.model.size=Ti
            --config.batch_size=32.
Expect:     a backbone fitted to your images; worthwhile from some 100,000 of them on.
"""

from ml_collections import ConfigDict

from ddae_jax.config import pretrain_defaults
from ddae_jax.config.recipes import use_recipe


def get_config(cell: str = "ddae,deep_dynamic") -> ConfigDict:
    """Returns the config of a ViT-S/16 on the images below ``config.data.data_dir``."""
    config = pretrain_defaults()
    config.batch_size = 256
    config.epochs = 100.0
    config.model.size = "S"
    config.data.source = "folder"
    config.checkpoint.every_epochs = 1.0
    config.log.figures_every_epochs = 10.0
    use_recipe(config, cell)
    if config.model.encoder_input == "visible":
        # As narrow relative to the encoder as MAE's decoder.
        config.decoder.width = 256
        config.decoder.depth = 4
        config.decoder.num_heads = 8
    return config
