"""UperNet on a folder of your own images and their annotations: the class of each pixel.

Command:    python -m ddae_jax.segment --config=configs/folder_segment.py \\
                --config.data.data_dir=FOLDER --config.data.num_classes=N \\
                --config.init_from=RUN_OR_WEIGHTS --workdir=runs/mine_segmented
            FOLDER/images/{training,validation} and FOLDER/annotations/{training,validation} hold
            files of the same names. Annotations are PNG files with one class number per pixel, from
            0 on, and 255 for pixels without a class (--config.data.ignore_label).
Hardware:   a GPU; with little memory add --config.optimizer.micro_batches=4.
Expect:     docs/segmentation.md has what pretraining was worth on CamVid.
"""

from ml_collections import ConfigDict

from ddae_jax.config import segment_defaults


def get_config() -> ConfigDict:
    """Returns ADE20K's recipe on crops of 224 of images whose shorter side has 256 pixels."""
    config = segment_defaults()
    config.batch_size = 16
    config.epochs = 50.0
    config.model.image_size = (224, 224)
    config.augment.base_size = (256, 1024)
    config.optimizer.warmup_epochs = 2.0
    config.data.num_classes = 2
    config.checkpoint.every_epochs = 5.0
    return config
