"""DDAE on ImageNet-1k with ViT-H/14, for 100 epochs.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_ddae_vit_h14.py \\
                --config.data.data_dir=IMAGENET --workdir=RUN --distributed
Hardware:   TPU slices or GPUs in groups of eight, over which parameters, optimizer and teacher are
            spread; --config.mesh.fsdp=N for groups of another size, which must divide the devices,
            1 where each holds them all.
Expect:     the paper reports no ViT-H, and this package has trained none.
"""

from ml_collections import ConfigDict

from configs import imagenet_ddae_vit_l16


def get_config() -> ConfigDict:
    """The run of ViT-L/16, with patches of 14 pixels, read out at depths 16, 21, 27 and 32."""
    config = imagenet_ddae_vit_l16.get_config()
    config.model.size = "H"
    config.model.patch_size = 14
    config.mesh.fsdp = 8
    return config
