"""UperNet with ViT-B/16 on ADE20K, 150 classes: mmsegmentation's recipe for MAE, 160,000 steps.

Command:    python -m ddae_jax.segment --config=configs/ade20k_upernet_vit_b16.py \\
                --config.data.data_dir=ADEChallengeData2016 --config.init_from=RUN_OR_WEIGHTS \\
                --workdir=WORKDIR --distributed
            For multi-scale testing add --config.evaluation.scales=0.5,0.75,1,1.25,1.5,1.75
            --config.evaluation.flip; for BEiT, --config.optimizer.learning_rate=1.6e-2, which is
            1e-3 for 16 images.
Hardware:   8 GPUs or a TPU slice; without --distributed, the devices of one host.
Expect:     the PAPERS report 48.1 mIoU with MAE (He et al. 2022, table 5), 49.3 with DDAE (Chen et
            al.), mmsegmentation 48.13 with MAE. These figures are theirs; this package has not
            reproduced them.
"""

from ml_collections import ConfigDict

from ddae_jax.config import segment_defaults

STEPS_PER_EPOCH = 20_210 // 16


def get_config() -> ConfigDict:
    """Returns mmsegmentation's recipe (mae-base_upernet_8xb2-amp-160k_ade20k-512x512).

    BEiT's recipe differs in the learning rate (Bao et al. 2021, table 14 of the version of 2022)
    and in test windows that move by two thirds. MAE's authors released no code for segmentation.
    Their paper (He et al. 2022, A.4) has 100 epochs, the best of several learning rates, and
    relative positions that are added for the transfer and start at zero. mmsegmentation adds these
    too, and factors on each branch that start at one; here an encoder keeps what it was pretrained
    with.
    """
    config = segment_defaults()
    config.batch_size = 16
    config.epochs = 160_000 / STEPS_PER_EPOCH
    config.head.width = 768
    config.optimizer.learning_rate = 1.6e-3  # 1e-4 for 16 images
    config.optimizer.layer_decay = 0.65
    config.optimizer.warmup_epochs = 1_500 / STEPS_PER_EPOCH
    config.data.source = "folder"
    config.data.num_classes = 150
    config.data.ignore_label = -1
    config.data.reduce_zero_label = True  # 0 is "other"
    config.data.num_workers = 8
    config.checkpoint.every_epochs = 10.0
    config.evaluation.stride = (256, 256)  # half a window
    return config
