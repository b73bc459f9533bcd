"""Any method under any supervision on CIFAR-10, with a ViT-Ti and patches of 4 pixels.

Command:    python -m ddae_jax.pretrain --config=configs/cifar10.py:mae,deep_dynamic \\
                --workdir=runs/cifar10_mae_deep_dynamic
            METHOD is ddae, mae, simmim, maskfeat, beit or beit2; SUPERVISION is last (as
            published), deep or deep_dynamic. beit and beit2 need a tokenizer first: see
            configs/cifar10_tokenizer.py.
            With --config.data.data_dir=FOLDER if FOLDER/cifar10/3.0.2 holds the dataset already.
Hardware:   any GPU; a CPU for a few epochs (--config.model.size=micro --config.epochs=5).
Expect:     docs/evaluation.md
"""

from ml_collections import ConfigDict

from configs import cifar10_ddae
from ddae_jax.recipes import use_recipe


def get_config(cell: str = "ddae,deep_dynamic") -> ConfigDict:
    """The study's config for a cell of the grid of methods and supervisions."""
    config = cifar10_ddae.get_config()
    use_recipe(config, cell)
    if config.method in ("beit", "beit2"):
        config.targets.tokenizer = "runs/cifar10_tokenizer"
    if config.method == "maskfeat":
        config.targets.hog_cell = 4  # a patch has one cell, not 2 x 2
    if config.model.encoder_input == "visible":
        # A decoder as narrow, against the encoder, as MAE's.
        config.decoder.width = 128
        config.decoder.depth = 4
        config.decoder.num_heads = 4
    return config
