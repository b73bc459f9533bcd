"""UperNet with ViT-B/16 on ADE20K, 150 classes: the recipe of BEiT and MAE, 160,000 steps.

Command:    python -m ddae_jax.segment --config=configs/ade20k_upernet_vit_b16.py \\
                --config.data.data_dir=ADEChallengeData2016 --config.init_from=RUN_OR_WEIGHTS \\
                --workdir=WORKDIR --distributed
            With --config.evaluation.scales=0.5,0.75,1,1.25,1.5,1.75 --config.evaluation.flip for
            multi-scale testing.
Hardware:   8 GPUs or a TPU slice; without --distributed, the devices of one host.
Expect:     the PAPERS report 48.1 mIoU with MAE (He et al. 2022, table 5), 49.3 with DDAE (Chen et
            al.). These figures are the papers'; this package has not reproduced them.
"""

from ml_collections import ConfigDict

from ddae_jax.config import segment_defaults


def get_config() -> ConfigDict:
    """The papers' recipe (He et al. 2022, appendix A.4; Bao et al. 2021, appendix)."""
    config = segment_defaults()
    config.batch_size = 16
    config.epochs = 160_000 * 16 / 20_210
    config.head.width = 768
    config.optimizer.learning_rate = 1.6e-3  # 1e-4 for 16 images
    config.optimizer.layer_decay = 0.65
    config.optimizer.warmup_epochs = 1_500 * 16 / 20_210
    config.data.source = "folder"
    config.data.num_classes = 150
    config.data.ignore_label = -1
    config.data.reduce_zero_label = True  # 0 is "other"
    config.data.num_workers = 8
    config.checkpoint.every_epochs = 10.0
    return config
