"""The rows of the table of keys that fine-tuning and segmentation add, and their own defaults."""

import math

from ddae_jax.config.schema import ABOVE_0, Key

DOWNSTREAM = {
    "init_encoder": Key(
        "student", "which encoder of the run in init_from is taken", choices=("student", "teacher")
    ),
    "from_scratch": Key(
        False, "whether only the architecture is taken from init_from, and not its weights"
    ),
    "optimizer.decay": Key(
        "cosine",
        "shape of the learning rate's fall after the warm-up",
        choices=("cosine", "linear"),
    ),
    "optimizer.layer_decay": Key(
        0.65,
        "factor of the learning rate from each block to the one before it (BEiT); 1 for one rate",
        within=(ABOVE_0, 1),
    ),
    "average.decay": Key(
        0.0, "decay of the moving average of the weights; 0 for no average", within=(0, 0.9999999)
    ),
    "evaluation.every_epochs": Key(
        1.0,
        "epochs from one evaluation to the next; 0: at the end of the run only",
        within=(0, math.inf),
        is_free=True,
    ),
}
"""Of fine-tuning and segmentation: where the encoder is from, and how it is trained."""

FINETUNING = {
    "model.pool": Key(
        "mean",
        "what the classifier reads: the mean of the patches, or the class token",
        choices=("mean", "class_token"),
    ),
    "model.is_frozen": Key(
        False, "whether the head alone is trained: a linear probe of the encoder"
    ),
    "head.normalization": Key(
        "layer",
        "what precedes the classifier: a layer norm, or a batch norm without affine as in MAE's "
        "linear probe",
        choices=("layer", "batch"),
    ),
    "head.init_deviation": Key(
        2e-5, "standard deviation of the classifier's initial kernel", within=(0, 10)
    ),
    "augment.rand_augment": Key(
        True, "whether images are changed by RandAugment (Cubuk et al. 2020)"
    ),
    "augment.num_operations": Key(2, "operations of RandAugment on each image", within=(1, 100)),
    "augment.magnitude": Key(9.0, "mean strength of RandAugment's operations", within=(0, 10)),
    "augment.magnitude_deviation": Key(
        0.5, "standard deviation of the strength of RandAugment's operations", within=(0, 10)
    ),
    "augment.erasing_probability": Key(
        0.25, "probability that a rectangle of an image is erased", within=(0, 1)
    ),
    "augment.mixup": Key(
        0.8,
        "alpha of the Beta distribution that mixup draws its shares from; 0 for no mixup",
        within=(0, 1000),
    ),
    "augment.cutmix": Key(
        1.0,
        "alpha of the Beta distribution that CutMix draws its shares from; 0 for no CutMix",
        within=(0, 1000),
    ),
    "augment.mix_probability": Key(
        1.0, "probability that mixup or CutMix is applied to a batch", within=(0, 1)
    ),
    "augment.label_smoothing": Key(
        0.1, "share of each label that is spread over all classes", within=(0, 0.99)
    ),
    "optimizer.kind": Key(
        "adamw", "AdamW, or LARS as in MAE's linear probe", choices=("adamw", "lars")
    ),
    "data.labelled_share": Key(
        1.0,
        "share of each class's training images that is used; seed draws them",
        within=(ABOVE_0, 1),
    ),
}

SEGMENTATION = {
    "head.kind": Key(
        "upernet",
        "what stands on the encoder: UPerNet on four depths, or a linear layer on the last one",
        choices=("upernet", "linear"),
    ),
    "head.width": Key(512, "width of UPerNet, values a pixel", within=(1, 2**14)),
    "head.depths": Key(
        (),
        "the four blocks that UPerNet reads, ascending; empty for L/3, L/2, 2L/3, L of L blocks",
        within=(1, 1000),
        item=int,
        example=(4, 6, 8, 12),
    ),
    "head.auxiliary_weight": Key(
        0.4,
        "weight of the loss of an auxiliary head (PSPNet), which only training has; 0 for none",
        within=(0, 1000),
    ),
    "augment.scale_range": Key(
        (0.5, 2.0),
        "least and largest random scale, times augment.base_size",
        within=(0.01, 100),
        length=2,
        ascends=True,
    ),
    "augment.base_size": Key(
        (512, 2048),
        "most pixels that an image's shorter and longer side have at scale 1",
        within=(1, 2**14),
        length=2,
        item=int,
        ascends=True,
    ),
    "augment.max_class_share": Key(
        0.75,
        "share of a crop above which one class makes it be drawn again; 1 takes any crop",
        within=(0.01, 1),
    ),
    "augment.distorts_colours": Key(
        True, "whether brightness, contrast, saturation and hue are changed at random"
    ),
    "data.num_classes": Key(150, "number of classes of pixels", within=(2, 255)),
    "data.ignore_label": Key(
        255, "label of pixels without a class; -1 for no such label", within=(-1, 2**16)
    ),
    "data.reduce_zero_label": Key(
        False, "whether label 0 is ignored and label 1 is the first class, as in ADE20K"
    ),
    "evaluation.stride": Key(
        (0, 0),
        "pixels from one window of an image to the next, down and to the right; 0 for two thirds "
        "of a crop",
        within=(0, 2**14),
        length=2,
        item=int,
        is_free=True,
    ),
    "evaluation.scales": Key(
        (1.0,),
        "scales, times augment.base_size, whose results are averaged",
        within=(0.01, 100),
        is_free=True,
    ),
    "evaluation.flip": Key(False, "whether results of mirror images are averaged in", is_free=True),
}

FINETUNING_DEFAULTS = {
    "job": "finetune",
    "batch_size": 1024,
    "model.image_size": (0, 0),
    "model.positions": "learned",
    "model.drop_path_rate": 0.1,
    "optimizer.learning_rate": 5e-4,
    "optimizer.warmup_epochs": 5.0,
    "optimizer.b2": 0.999,
    "optimizer.clip_norm": 0.0,
    "data.crop_scale": (0.08, 1.0),
}
"""Of keys that other jobs have with another default."""

SEGMENTATION_DEFAULTS = {
    "job": "segment",
    "batch_size": 16,
    "epochs": 127.0,  # of ADE20K's 20,210 images: about 160,000 steps
    "model.image_size": (512, 512),
    "model.positions": "learned",
    "model.drop_path_rate": 0.1,
    "optimizer.learning_rate": 1.6e-3,  # 1e-4 for 16 images
    "optimizer.warmup_epochs": 1.2,
    "optimizer.decay": "linear",
    "optimizer.b2": 0.999,
    "optimizer.clip_norm": 0.0,
    "data.train_split": "training",
    "evaluation.every_epochs": 10.0,
    "evaluation.batch_size": 2,
}
