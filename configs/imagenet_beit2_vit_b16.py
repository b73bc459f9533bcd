"""BEiT v2 on ImageNet-1k with ViT-B/16, as published: 1600 epochs, after its tokenizer.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_beit2_vit_b16.py \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed \\
                --config.targets.tokenizer=TOKENIZER
            TOKENIZER is the workdir of a run of configs/imagenet_tokenizer_vit_b16.py.
            --config=configs/imagenet_beit2_vit_b16.py:deep_dynamic for deep dynamic supervision.
Hardware:   as for configs/imagenet.py.
Expect:     the PAPER reports 85.5 % top-1 after fine-tuning, and 53.1 mIoU on ADE20K (Peng et al.
            2022, table 1). These figures are the paper's; this package has not reproduced them.
"""

from ml_collections import ConfigDict

from configs import imagenet_beit_vit_b16


def get_config(supervision: str = "last") -> ConfigDict:
    """Returns BEiT's recipe, twice as long; two blocks aggregate the patches of block 9."""
    config = imagenet_beit_vit_b16.get_config(supervision, method="beit2")
    config.epochs = 1600.0
    config.data.crop_scale = (0.2, 1.0)
    config.targets.aggregation_blocks = 2
    config.targets.aggregated_patches_from = 9
    return config
