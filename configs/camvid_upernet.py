"""UperNet on CamVid's street scenes, 11 classes: small enough for a laptop.

Command:    python -m ddae_jax.segment --config=configs/camvid_upernet.py \\
                --config.data.data_dir=CAMVID --config.init_from=runs/pretrained \\
                --workdir=runs/camvid
            Files in CAMVID/images/{training,validation}/*.jpg and CAMVID/annotations/.../*.png have
            the same names. --config.from_scratch trains the same network from random weights.
Hardware:   any GPU; a CPU for a ViT-nano or ViT-micro.
Expect:     docs/segmentation.md
"""

from ml_collections import ConfigDict

from ddae_jax.config import segment_defaults


def get_config() -> ConfigDict:
    """Returns ADE20K's recipe for fewer, smaller images: crops of 128 of images of 180 x 240."""
    config = segment_defaults()
    config.batch_size = 8
    config.epochs = 40.0
    config.model.size = "Ti"
    config.model.image_size = (128, 128)
    config.model.patch_size = 8
    config.model.dtype = "float32"
    config.head.width = 64
    config.augment.base_size = (180, 240)
    config.optimizer.learning_rate = 2e-2  # for 256 images: 6e-4 for 8
    config.optimizer.warmup_epochs = 2.0
    config.data.num_classes = 11
    config.data.ignore_label = 11
    config.checkpoint.every_epochs = 10.0
    config.log.every_steps = 10
    config.evaluation.every_epochs = 10.0
    config.evaluation.batch_size = 4
    return config
