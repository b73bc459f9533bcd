"""Every key of every job's config, with its default. A key means the same in all jobs."""

import functools
import math
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

TUPLES = {
    "model.image_size": (2, int, (0, 2**14)),
    "supervision.depths": (None, int, (-math.inf, math.inf)),  # but see supervised_depths
    "supervision.depth_weights": (None, float, (0, 10**6)),
    "supervision.beta_range": (2, float, (-10, 10)),
    "data.crop_scale": (2, float, (0.001, 1)),
    "data.crop_ratio": (2, float, (0.01, 100)),
    "augment.scale_range": (2, float, (0.01, 100)),
    "augment.base_size": (2, int, (1, 2**14)),
    "head.depths": (None, int, (1, 1000)),
    "evaluation.stride": (2, int, (0, 2**14)),
    "evaluation.scales": (None, float, (0.01, 100)),
    "data.mean": ("data.channels", float, (0, 1)),
    "data.std": ("data.channels", float, (0.001, 1)),
}
"""How many values a tuple has (None: any number), of which type, and their least and most."""

EXAMPLES = {
    "supervision.depths": (6, 12),
    "supervision.depth_weights": (0.5, 1.0),
    "data.name": "cifar10",
    "data.data_dir": "/data",
    "targets.tokenizer": "runs/tokenizer",
    "tokenizer.teacher": "runs/teacher",
    "init_from": "runs/pretrained",
    "init_part": "teacher",
    "init_activation": "gelu",
    "head.depths": (4, 6, 8, 12),
    "optimizer.decay_also": "class_token,mask_token",
}
"""Values to show where the default is empty, and so says little."""

RENAMED = {"evaluation.max_train_examples": "evaluation.max_examples"}
"""Keys that stored configs may have by an older name, and what they are called now."""

RETIRED = frozenset({"tokenizer.min_perplexity"})
"""Keys that stored configs may have, and that are no more; none of them changed what is learned."""

FREE_TO_CHANGE = ("checkpoint", "log", "evaluation", "mesh", "data.data_dir", "data.num_workers")
FREE_TO_CHANGE += ("data.num_threads", "data.max_corrupt_share", "tokenizer.min_perplexity_share")
# Where it is; not what.
FREE_TO_CHANGE += ("targets.tokenizer", "tokenizer.teacher", "init_from")
FREE_TO_CHANGE += ("defaults_version",)  # all that it stands for is in the other keys
"""Keys that may differ when a run is continued: they do not change what it computes."""

FOLDERS = frozenset({"data.data_dir", "targets.tokenizer", "tokenizer.teacher", "init_from"})
"""Keys that name folders; they are stored so that these can be found from elsewhere."""

DEFAULTS_VERSION = 6
"""Of the defaults below. It rises with every release that changes one, or adds a key.

A run keeps the version that it began with, and so is continued as it began.
"""

# What was done before these keys: Pillow's own limit, 16 bits by their range, nothing skipped.
_ALL_JOBS_4 = {"data.max_pixels": 0, "data.max_value": 65535.0, "optimizer.skip_nonfinite": 0}
# Weights were read by what their arrays tell, and nothing but kernels was decayed.
_ALL_JOBS_5 = {
    "optimizer.decay_also": "",
    "init_heads": 0,
    "init_activation": "",
    "init_part": "",
}
_WHOLE_IMAGES_5 = {  # of those jobs that evaluate images as a whole
    "evaluation.crop_share": 0.0,
    "evaluation.crop_mode": "center",
    "evaluation.interpolation": "bicubic",
}

EARLIER_DEFAULTS: Mapping[int, Mapping[str, Mapping[str, Any]]] = types.MappingProxyType(
    {
        1: {
            "pretrain": {
                "model.encoder_input": "full",
                "decoder.kind": "self",
                "decoder.intermediate_share": 1.0,
                "decoder.is_shared": True,
                "targets.pixel_fade": 0.0,
                "targets.feature_start": 0.0,
                "targets.feature_warmup": 0.0,
                "targets.feature_normalization": "layer",
                "targets.feature_places": "hidden",
                "targets.normalize_predictions": False,
                "supervision.normalize_intermediate": True,
                "supervision.beta_step": 5.0,
                "teacher.half_life_epochs": 0.0,
                "teacher.half_life_start_epochs": 0.0,
                "teacher.warmup": 0.25,
                "teacher.copy_every_epochs": 0.0,
            }
        },
        2: {
            "pretrain": {
                "supervision.beta_gradient": "absolute",
                "teacher.hold": 0.0,
            }
        },
        3: {
            "pretrain": {
                "decoder.depth": 8,
                "decoder.intermediate_share": 0.25,
                "targets.pixel_fade": 1.0,
                "targets.feature_start": 0.25,
                "targets.feature_warmup": 0.25,
                "targets.feature_normalization": "batch",
                "teacher.half_life_epochs": 25.0,
                "teacher.hold": 0.25,
                "teacher.warmup": 0.25,
            }
        },
        4: {
            "pretrain": {
                "supervision.beta_step": 1.0,
                "teacher.min_half_lives": 0.0,
                **_ALL_JOBS_4,
            },
            "finetune": {"model.image_size": (224, 224), **_ALL_JOBS_4},
            "segment": _ALL_JOBS_4,
        },
        5: {
            "pretrain": {
                "init_decoder": False,
                "mask.min_block_share": 0.0,
                "model.frozen_dtype": "as_trained",
                "targets.hog_form": "differences",
                **_ALL_JOBS_5,
                **_WHOLE_IMAGES_5,
            },
            "finetune": {**_ALL_JOBS_5, **_WHOLE_IMAGES_5},
            "segment": _ALL_JOBS_5,
        },
    }
)
"""By version and job: what keys had as their defaults that have others, or are new, in the next.

For a new key, what was done before there was a choice. Stored configs that lack a key have this.
"""


def pretrain_defaults() -> ConfigDict:
    """Every key of a pretraining config, with its default; keys cannot be added to it.

    A config file starts from these and sets what is particular to its run.
    """
    config = _of_every_job("pretrain")
    config.method = "ddae"
    config.batch_size = 256
    config.init_decoder = False  # whether a decoder of MAE in init_from is taken too
    config.model.encoder_input = "visible"  # with the decoder; or "full", with mask tokens
    # Of a given tokenizer or teacher; or "bfloat16", or "as_trained", that of its own run.
    config.model.frozen_dtype = "float32"
    config.data.augment_in = "workers"  # or "device", for images of one size
    config.data.crop_scale = (0.2, 1.0)  # area of a random crop, 0.001 to 1 of the image's
    config.data.crop_ratio = (3 / 4, 4 / 3)  # its width over its height; 0.01 to 100

    config.decoder = ConfigDict()  # used with encoder_input="visible"
    config.decoder.width = 512
    config.decoder.depth = 4
    config.decoder.num_heads = 16
    config.decoder.kind = "cross"  # hidden places attend to visible features; or "self": to all
    config.decoder.intermediate_blocks = 0  # that decode depths before the last; 0 for all
    config.decoder.intermediate_share = 1.0  # of hidden patches that those depths decode
    config.decoder.is_shared = True  # False: each depth has one of its own, for comparison

    config.mask = ConfigDict()
    config.mask.kind = "random"
    config.mask.ratio = 0.75  # hidden share of patches
    config.mask.unit = 1  # side of the squares that a random mask hides as a whole, patches
    config.mask.min_block_share = 0.0  # of the hidden patches, in a block; 0 for 16/196 of all

    config.targets = ConfigDict()
    config.targets.normalize_pixels = True
    config.targets.pixel_weight = 1.0  # lambda of each objective; 0 leaves it out
    config.targets.pixel_fade = 0.5  # share of the pixels' weight that goes as features' rises
    config.targets.feature_weight = 1.0
    config.targets.feature_start = 0.4  # share of the run before features have any weight
    config.targets.feature_warmup = 0.1  # share of the run over which it then rises
    config.targets.feature_normalization = "position"  # or "layer", "batch", "instance"
    config.targets.feature_places = "hidden"  # or "visible", "both"
    config.targets.normalize_predictions = False  # of features, as targets are
    config.targets.hog_cell = 8  # side of the cells of gradient histograms, pixels
    config.targets.hog_form = "sobel"  # or "differences": see ddae_jax/methods/hog.py
    config.targets.tokenizer = ""  # workdir of a run with method="vqkd"
    config.targets.aggregation_blocks = 2  # of BEiT v2's patch-aggregation head
    config.targets.aggregated_patches_from = 0  # the block they come from; 0 for that at 3/4

    config.tokenizer = ConfigDict()  # used with method="vqkd"
    config.tokenizer.teacher = ""  # workdir of a run, or a folder with model.safetensors
    config.tokenizer.num_codes = 8192
    config.tokenizer.code_width = 32
    config.tokenizer.decoder_depth = 3
    config.tokenizer.decay = 0.99  # of the codebook's moving averages
    config.tokenizer.commitment = 1.0  # weight of the loss that draws vectors to codes
    config.tokenizer.revive_below = 0.1  # dead is a code of less than this share of mean usage
    # A codebook whose perplexity is less than this share of its codes for long is warned of.
    config.tokenizer.min_perplexity_share = 0.05  # 0 for never

    config.supervision = ConfigDict()
    config.supervision.mode = "deep_dynamic"
    config.supervision.depths = ()  # ascending, the last L; () for L/2, 2L/3, 5L/6, L
    config.supervision.depth_weights = ()  # alpha of each depth; () for 1 each
    config.supervision.weighting = "power"  # or "normalised", "neighbourhood", for comparison
    config.supervision.normalize_intermediate = True  # by the encoder's final norm
    config.supervision.beta_init = -0.5  # within beta_range
    config.supervision.beta_gradient = "relative"  # of each loss's logarithm; or "absolute"
    config.supervision.beta_step = 2.0  # beta's way in a whole run, for a gradient of -1
    config.supervision.beta_range = (-2.0, 2.0)  # within -10 to 10

    config.teacher = ConfigDict()
    config.teacher.momentum_start = 0.996
    config.teacher.momentum_end = 1.0  # at least momentum_start
    config.teacher.half_life_epochs = 100.0  # of what the teacher holds; 0 for momentum_, of a step
    config.teacher.half_life_start_epochs = 0.5  # at the start; 0 for half_life_epochs throughout
    config.teacher.hold = 0.4  # share of the run for which that stays
    config.teacher.min_half_lives = 8.0  # in hold: in a short run the first one is as short as that
    config.teacher.warmup = 0.05  # share of the run from the one half-life to the other, after that
    config.teacher.copy_every_epochs = 0.0  # a copy of the student so often, instead; 0 for none

    config.evaluation.knn_every_epochs = 0.0  # 0 for never
    config.evaluation.encoder = "student"
    config.evaluation.depth = 0  # 0 for the last
    config.evaluation.pool = "mean"  # of normed patches; or "class_token", "normed_mean"
    _whole_images(config)
    config.evaluation.k = 20
    config.evaluation.temperature = 0.07
    config.evaluation.max_examples = 0  # of each set, for k-NN during training; 0 for all
    config.lock()
    return config


def finetune_defaults() -> ConfigDict:
    """Every key of a fine-tuning config, with its default; keys cannot be added to it.

    They are MAE's recipe for ViT-B (He et al. 2022, table 9, with the learning rate, its layer-wise
    decay and the random erasing of the released command).
    """
    config = _of_every_job("finetune")
    _downstream(config)
    config.batch_size = 1024
    config.model.image_size = (0, 0)  # that of the encoder in init_from
    config.model.pool = "mean"  # or "class_token"
    config.model.drop_path_rate = 0.1
    config.model.is_frozen = False  # True trains the head alone, a linear probe

    config.head = ConfigDict()
    config.head.normalization = "layer"  # or "batch", without affine, as in MAE's linear probe
    config.head.init_deviation = 2e-5  # of the classifier's kernel

    config.augment = ConfigDict()
    config.augment.rand_augment = True
    config.augment.num_operations = 2  # of RandAugment, on each image
    config.augment.magnitude = 9.0  # 0 to 10
    config.augment.magnitude_deviation = 0.5
    config.augment.erasing_probability = 0.25
    config.augment.mixup = 0.8  # alpha; 0 for none
    config.augment.cutmix = 1.0
    config.augment.mix_probability = 1.0
    config.augment.label_smoothing = 0.1

    config.optimizer.kind = "adamw"  # or "lars"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 0.0
    config.data.crop_scale = (0.08, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.labelled_share = 1.0  # of each class's training images, drawn by the seed
    config.evaluation.every_epochs = 1.0  # and at the end
    _whole_images(config)
    config.lock()
    return config


def segment_defaults() -> ConfigDict:
    """Every key of a segmentation config, with its default; keys cannot be added to it.

    They are mmsegmentation's recipe for MAE on ADE20K, for ViT-B.
    """
    config = _of_every_job("segment")
    _downstream(config)
    config.batch_size = 16
    config.epochs = 127.0  # of ADE20K's 20,210 images: about 160,000 steps
    config.model.image_size = (512, 512)  # of the crops
    config.model.drop_path_rate = 0.1

    config.head = ConfigDict()
    config.head.kind = "upernet"  # or "linear"
    config.head.width = 512
    config.head.depths = ()  # of the four features; () for L/3, L/2, 2L/3, L
    config.head.auxiliary_weight = 0.4  # of the loss of a head beside it; 0 for none

    config.augment = ConfigDict()
    config.augment.scale_range = (0.5, 2.0)  # random, times base_size
    config.augment.base_size = (512, 2048)  # what shorter and longer side may measure; pixels
    config.augment.max_class_share = 0.75  # of a crop; 1 takes any crop
    config.augment.distorts_colours = True

    config.optimizer.learning_rate = 1.6e-3  # for 256 images: 1e-4 for 16
    config.optimizer.warmup_epochs = 1.2
    config.optimizer.decay = "linear"
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 0.0
    config.data.train_split = "training"
    config.data.num_classes = 150
    config.data.ignore_label = 255  # of pixels without a class; -1 for none
    config.data.reduce_zero_label = False  # whether 0 is ignored, and 1 the first class

    config.evaluation.every_epochs = 10.0  # and at the end; 0: at the end only
    config.evaluation.batch_size = 2  # windows of an image
    config.evaluation.stride = (0, 0)  # from a window to the next; 0 for two thirds of a crop
    config.evaluation.scales = (1.0,)  # times base_size, whose results are averaged
    config.evaluation.flip = False  # whether mirror images are averaged in
    config.lock()
    return config


def _of_every_job(job: str) -> ConfigDict:
    config = ConfigDict()
    config.job = job  # whose config this is: python -m ddae_jax.JOB
    config.defaults_version = DEFAULTS_VERSION  # that the run began with; not to be set
    config.init_from = ""  # workdir of a pretraining run, or weights of others; "" for none
    config.init_heads = 0  # of the encoder there, where its file does not tell; 0 where it does
    config.init_activation = ""  # likewise; or "gelu", "quick_gelu", "gelu_tanh"
    config.init_part = ""  # of a file with several networks, such as "teacher"; "" for the usual
    config.seed = 0  # 0 to 2**32 - 1
    config.batch_size = 256  # images a step, over all devices
    config.epochs = 100.0  # of fewer than 2**31 steps

    config.model = ConfigDict()
    config.model.size = "B"
    config.model.image_size = (224, 224)  # height, width; pixels
    config.model.patch_size = 16
    config.model.positions = "sincos"
    config.model.relative_positions = "none"  # or a learned bias, "shared" or "per_block"
    config.model.layer_scale = 0.0  # where the factors of each branch start; 0 for no factors
    config.model.has_key_bias = True
    config.model.use_class_token = True
    config.model.norms_embedding = False  # whether a layer norm precedes the blocks, as in CLIP
    config.model.activation = "gelu"
    config.model.norm_epsilon = 1e-6
    config.model.drop_path_rate = 0.0
    config.model.dtype = "bfloat16"  # of the computation; parameters are float32
    config.model.rematerialization = "none"
    config.model.attention_form = "auto"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1.5e-4  # for 256 images; scaled by batch_size / 256
    config.optimizer.end_learning_rate = 0.0  # scaled likewise
    config.optimizer.warmup_epochs = 10.0  # cut to the run's length
    config.optimizer.weight_decay = 0.05  # of kernels
    # And of these, separated by commas: class_token, mask_token, positions, relative_positions.
    config.optimizer.decay_also = ""
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.clip_norm = 3.0  # largest gradient norm; 0 for no clipping
    config.optimizer.micro_batches = 1  # parts of a batch, one after the other, to save memory
    config.optimizer.skip_nonfinite = 0  # so many NaN steps in a row are left out

    config.data = ConfigDict()
    config.data.source = "folder"
    config.data.name = ""  # of the tfds dataset
    config.data.data_dir = ""
    config.data.train_split = "train"
    config.data.test_split = "validation"  # for evaluation; not needed for pretraining
    config.data.channels = 3  # 1 is grey, 3 RGB; others come from .npy, .npz and TIFF files
    config.data.mean = (0.485, 0.456, 0.406)  # of each channel, of values in [0, 1]
    config.data.std = (0.229, 0.224, 0.225)
    config.data.flip = True
    config.data.num_workers = 0  # processes; 0 for threads of this one
    config.data.num_threads = 0  # in each process; 0 for what suits the images
    config.data.in_memory = False  # decode all images once; for small ones of one size
    config.data.max_corrupt_share = 0.01  # more unreadable images than this stop the run
    config.data.max_pixels = 50_000_000  # an image of more is skipped; 0 for Pillow's own limit
    config.data.max_value = 0.0  # what becomes white in images of more than 8 bits; 0: by each file

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along each axis; -1 takes what the other leaves
    config.mesh.fsdp = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1.0  # and at the end, always
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every = 0  # every k-th is kept for good; 0 for none

    config.log = ConfigDict()
    config.log.every_steps = 50
    config.log.figures_every_epochs = 0.0  # 0, or more than the run has: at the end only
    config.log.tensorboard = True

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 256
    return config


def _whole_images(config: ConfigDict) -> None:
    """Adds how evaluation cuts images, where it sees each as a whole."""
    # Share of the sides that is shown; 0: all of images that have the input's size, else 0.875.
    config.evaluation.crop_share = 0.0
    config.evaluation.crop_mode = "center"  # or "squash", which stretches images to the aspect
    config.evaluation.interpolation = "bicubic"  # or "bilinear", "lanczos", "hamming", ...


def _downstream(config: ConfigDict) -> None:
    """What fine-tuning and segmentation share: where the encoder is from, and how it is trained."""
    config.init_encoder = "student"  # or "teacher", of that run
    config.from_scratch = False  # True takes the architecture of init_from without its weights
    config.model.positions = "learned"
    config.optimizer.decay = "cosine"  # or "linear", of the learning rate
    config.optimizer.layer_decay = 0.65  # of the learning rate, from each block to the one before
    config.average = ConfigDict()
    config.average.decay = 0.0  # of the moving average of the weights; 0 for none


JOBS = {
    "pretrain": pretrain_defaults,
    "finetune": finetune_defaults,
    "segment": segment_defaults,
}
"""The defaults of each job's config."""

WORDS = {"pretrain": "pretraining", "finetune": "fine-tuning", "segment": "segmentation"}
"""What each job does."""


def defaults_of(job: str, version: int = DEFAULTS_VERSION) -> ConfigDict:
    """Every key of a job's config, with the default that it had in a version."""
    config = JOBS[job]()
    for earlier in range(DEFAULTS_VERSION - 1, version - 1, -1):
        config.update_from_flattened_dict(EARLIER_DEFAULTS[earlier].get(job, {}))
    config.defaults_version = version
    return config


@functools.cache
def defaults_by_key(job: str = "pretrain", version: int = DEFAULTS_VERSION) -> Mapping[str, Any]:
    """The defaults of a job by dotted key: ``{"model.size": "B", ...}``."""
    return types.MappingProxyType(flatten(defaults_of(job, version)))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key: ``{"model.size": "B", ...}``."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
