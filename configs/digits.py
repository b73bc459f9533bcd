"""The quickstart: DDAE on 1,797 scanned handwritten digits, which come with scikit-learn.

Command:    bash launch/quickstart.sh, or
            python -m ddae_jax.pretrain --config=configs/digits.py --workdir=runs/digits
Hardware:   two CPU cores.
Expect:     four minutes; k-NN accuracy 91.8 %, where the untrained network has 76.9 % and raw
            pixels 97.5 %; then, fine-tuned on 5 labels a class (configs/digits_finetune.py),
            90.1 %, and 60.3 % from scratch (one seed; docs/recipe.md).
"""

from ml_collections import ConfigDict

from ddae_jax.config import pretrain_defaults


def get_config() -> ConfigDict:
    """Returns the quickstart's config."""
    config = pretrain_defaults()
    config.batch_size = 64
    config.epochs = 30.0

    config.model.size = "micro"
    config.model.image_size = (24, 24)  # 8x8 scans, enlarged
    config.model.patch_size = 4
    config.model.dtype = "float32"
    config.decoder.width = 96
    config.decoder.depth = 2
    config.decoder.num_heads = 3

    config.teacher.half_life_epochs = 30.0
    config.optimizer.learning_rate = 1.6e-2
    config.optimizer.warmup_epochs = 5.0

    config.data.source = "digits"
    config.data.test_split = "test"
    config.data.channels = 1
    config.data.mean = (0.5,)
    config.data.std = (0.5,)
    config.data.crop_scale = (0.6, 1.0)
    config.data.flip = False  # a mirrored digit is no digit

    config.checkpoint.every_epochs = 5.0
    config.log.every_steps = 10
    config.log.figures_every_epochs = 10.0
    config.evaluation.knn_every_epochs = 3.0
    return config
