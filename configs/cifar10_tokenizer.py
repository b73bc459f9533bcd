"""A VQ-KD tokenizer for CIFAR-10, from the features of an encoder that was pretrained here.

Command:    python -m ddae_jax.pretrain --config=configs/cifar10_tokenizer.py \\
                --workdir=runs/cifar10_tokenizer --config.tokenizer.teacher=runs/cifar10
            runs/cifar10 is the workdir of a run of configs/cifar10_ddae.py.
Hardware:   as for configs/cifar10.py, whose data and encoder it shares.
Expect:     docs/methods.md
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config() -> ConfigDict:
    """Returns a config with the data and encoder of configs/cifar10.py, as BEiT v2's tokenizer."""
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
