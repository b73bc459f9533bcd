"""Any method under any supervision on ImageNet-1k, with ViT-B/16: what the papers' runs share.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet.py:mae,deep_dynamic \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed
            IMAGENET/train and IMAGENET/validation hold a folder of JPEGs for each class. METHOD is
            ddae, mae, simmim, maskfeat, beit or beit2; SUPERVISION is last, deep or deep_dynamic.
Hardware:   a TPU pod slice or GPUs; without --distributed, the devices of one host.
Expect:     the configs imagenet_METHOD_vit_b16.py have each paper's own recipe and result; this one
            trains every method for 100 epochs.
"""

from ml_collections import ConfigDict

from ddae_jax.config import pretrain_defaults
from ddae_jax.config.recipes import use_recipe


def get_config(cell: str = "ddae,deep_dynamic") -> ConfigDict:
    """Returns the config of a ViT-B/16: batch 2048, 100 epochs."""
    config = pretrain_defaults()
    use_recipe(config, cell)
    config.batch_size = 2048
    config.epochs = 100.0
    config.model.size = "B"
    if config.method in ("beit", "beit2"):
        config.targets.tokenizer = "runs/imagenet_tokenizer"
    config.data.source = "folder"
    config.data.num_workers = 16
    return config
