"""DDAE on ImageNet-1k with ViT-H/14, for 100 epochs.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_ddae_vit_h14.py \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed
Hardware:   TPU slices or GPUs in groups of eight, over which parameters, optimizer and teacher are
            spread. --config.mesh.fsdp=N sets another size of the groups, which must divide the
            number of devices; with 1 each device holds them all.
Expect:     the paper reports no ViT-H, and this package has trained none.
"""

from ml_collections import ConfigDict

from configs import imagenet_ddae_vit_l16


def get_config() -> ConfigDict:
    """Returns ViT-L/16's config with patches of 14 pixels, read out at depths 16, 21, 27, 32."""
    config = imagenet_ddae_vit_l16.get_config()
    config.model.size = "H"
    config.model.patch_size = 14
    config.mesh.fsdp = 8
    return config
