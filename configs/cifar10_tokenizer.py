"""A VQ-KD tokenizer for CIFAR-10, from the features of an encoder that was pretrained here.

Command:    python -m ddae_jax.pretrain --config=configs/cifar10_tokenizer.py \\
                --workdir=runs/cifar10_tokenizer --config.tokenizer.teacher=runs/cifar10
            runs/cifar10 being the workdir of a run of configs/cifar10_ddae.py.
Hardware:   as configs/cifar10.py, which it shares data and encoder with.
Expect:     docs/methods.md
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """The study's data and encoder, trained as a tokenizer of BEiT v2."""
    config = cifar10.shared()
    config.method = "vqkd"
    config.model.encoder_input = "full"
    config.epochs = 100.0
    config.tokenizer.teacher = "runs/cifar10"
    config.tokenizer.num_codes = 1024
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 1e-4
    config.data.crop_scale = (0.4, 1.0)
    return config
