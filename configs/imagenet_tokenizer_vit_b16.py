"""BEiT v2's VQ-KD tokenizer on ImageNet-1k with ViT-B/16, as published: 100 epochs.

Command:    python -m ddae_jax.pretrain --config=configs/imagenet_tokenizer_vit_b16.py \\
                --config.data.data_dir=IMAGENET --workdir=TOKENIZER --distributed \\
                --config.tokenizer.teacher=TEACHER
            TEACHER is the workdir of a run, or a folder with model.safetensors and config.json as
            timm saves them: of vit_base_patch16_clip_quickgelu_224.openai (the paper's teacher), or
            of vit_base_patch16_224.dino.
Hardware:   as for configs/imagenet.py.
Expect:     the AUTHORS report that 97 % of the codes are used, with CLIP's features (Peng et al.
            2022; here CLIP's features are taken before its projection). This figure is theirs; this
            package has not reproduced it.
"""

from ml_collections import ConfigDict

from ddae_jax.config import pretrain_defaults


def get_config() -> ConfigDict:
    """Returns the paper's recipe (appendix)."""
    config = pretrain_defaults()
    config.method = "vqkd"
    config.batch_size = 512
    config.epochs = 100.0
    config.model.size = "B"
    config.model.encoder_input = "full"
    config.model.positions = "learned"
    config.tokenizer.teacher = "runs/imagenet_teacher"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.end_learning_rate = 5e-6
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 0.0
    config.data.source = "folder"
    config.data.num_workers = 16
    config.data.crop_scale = (0.08, 1.0)
    return config
