"""The config of run_of_version_6.zip, a run of DDAE by the defaults of its time, stored half-way.

It was made by the commit 3d1a043, the last one before the package was divided into rooms.
"""

from ddae_jax.config import pretrain_defaults
from ddae_jax.models import vit

vit.SIZES["micro"] = vit.Size(16, 3, 2)


def get_config():
    config = pretrain_defaults()
    config.batch_size = 64
    config.epochs = 0.36
    config.model.size = "micro"
    config.model.image_size = (16, 16)
    config.model.patch_size = 4
    config.model.dtype = "float32"
    config.decoder.width = 16
    config.decoder.depth = 1
    config.decoder.num_heads = 2
    config.optimizer.warmup_epochs = 0.1
    config.data.source = "digits"
    config.data.test_split = "test"
    config.data.channels = 1
    config.data.mean = (0.5,)
    config.data.std = (0.5,)
    config.data.flip = False
    config.checkpoint.every_epochs = 0.2
    config.log.every_steps = 1
    config.log.tensorboard = False
    return config
