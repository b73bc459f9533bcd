"""The rows of the table of keys that all jobs have, and those that two of them share."""

import math

from ddae_jax.config.earlier import DEFAULTS_VERSION
from ddae_jax.config.schema import ABOVE_0, MANY, Key
from ddae_jax.models.sizes import SIZES

_ACTIVATIONS = ("gelu", "quick_gelu", "gelu_tanh")

EVERY_JOB = {
    "job": Key("pretrain", "the command that the config belongs to: pretrain, finetune or segment"),
    "defaults_version": Key(
        DEFAULTS_VERSION,
        "version of the defaults that the run began with; stored with it, and not to be set",
        within=(1, DEFAULTS_VERSION),
        is_free=True,  # all that it stands for is in the other keys
    ),
    "init_from": Key(
        "",
        "trained encoder to begin with: workdir of a pretraining run, or weights of other "
        "packages; empty for none",
        example="runs/pretrained",
        is_free=True,
        names_folder=True,
    ),
    "init_heads": Key(
        0,
        "attention heads of the encoder in init_from, for a file that does not tell; 0 reads it "
        "from the file",
        within=(0, 1024),
    ),
    "init_activation": Key(
        "",
        "activation of the encoder in init_from, for a file that does not tell; empty reads it "
        "from the file",
        choices=("", *_ACTIVATIONS),
        example="gelu",
    ),
    "init_part": Key(
        "",
        "network of init_from to take, such as teacher, for a file with several; empty for the "
        "usual one",
        example="teacher",
    ),
    "seed": Key(0, "seed of everything that is random", within=(0, 2**32 - 1)),
    "batch_size": Key(256, "images a step, over all devices together", within=(1, 10**6)),
    "epochs": Key(  # see also builders.build.build_schedule
        100.0,
        "length of the run, in passes over the training images; at most 2**31 - 1 steps",
        within=(ABOVE_0, math.inf),
    ),
    "model.size": Key(
        "B", "size of the encoder: its width, depth and attention heads", choices=SIZES
    ),
    "model.image_size": Key(
        (224, 224),
        "height and width of the images that the encoder sees, pixels; 0,0 takes those of "
        "init_from, in fine-tuning only",
        within=(0, 2**14),
        length=2,
        item=int,
    ),
    "model.patch_size": Key(
        16, "side of a patch, pixels; divides both sides of the image", within=(1, 2**14)
    ),
    "model.positions": Key(
        "sincos",
        "position embedding that is added to the patches: fixed sine and cosine, or learned",
        choices=("sincos", "learned", "none"),
    ),
    "model.relative_positions": Key(
        "none",
        "learned attention bias by relative position (BEiT): one for all blocks, or one per block",
        choices=("none", "shared", "per_block"),
    ),
    "model.layer_scale": Key(
        0.0,
        "initial value of the learned factors of each branch (CaiT); 0 for no such factors",
        within=(0, 10),
    ),
    "model.has_key_bias": Key(
        True,
        "whether the keys of attention have a bias; softmax does not see it, and BEiT leaves it "
        "out",
    ),
    "model.use_class_token": Key(True, "whether a learned class token precedes the patches"),
    "model.norms_embedding": Key(False, "whether a layer norm precedes the blocks, as in CLIP"),
    "model.activation": Key("gelu", "activation of the MLPs", choices=_ACTIVATIONS),
    "model.norm_epsilon": Key(
        1e-6, "constant that layer norms add to the variance", within=(1e-12, 0.1)
    ),
    "model.drop_path_rate": Key(
        0.0,
        "stochastic depth: probability that the last block is skipped, rising linearly from 0 at "
        "the first",
        within=(0, 0.99),
    ),
    "model.dtype": Key(
        "bfloat16",
        "type in which the network computes; its parameters are float32",
        choices=("float32", "bfloat16"),
    ),
    "model.rematerialization": Key(
        "none",
        "what the backward pass recomputes to save memory: nothing, all but matrix products, or "
        "whole blocks",
        choices=("none", "dots", "full"),
    ),
    "model.attention_form": Key(
        "auto",
        "implementation of the attention; auto takes the one that suits the hardware",
        choices=("auto", "batched_matmul", "dot_product", "cudnn", "einsum"),
    ),
    "optimizer.learning_rate": Key(
        1.5e-4,
        "peak learning rate for 256 images a step; is scaled by batch_size / 256",
        within=(0, 1e30),  # scaled to the batch, it stays within float32
    ),
    "optimizer.end_learning_rate": Key(
        0.0,
        "learning rate at the end of the run for 256 images a step; is scaled by batch_size / 256",
        within=(0, 1e30),
        not_above="optimizer.learning_rate",
    ),
    "optimizer.warmup_epochs": Key(
        10.0,
        "epochs over which the learning rate rises linearly from 0; cut to the length of the run",
        within=(0, math.inf),
    ),
    "optimizer.weight_decay": Key(
        0.05, "weight decay of kernels, and of what optimizer.decay_also names", within=(0, 1000)
    ),
    "optimizer.decay_also": Key(  # see models.weight_decay.check_decay_also
        "",
        "parameters that are decayed beside kernels, separated by commas: class_token, mask_token, "
        "positions, relative_positions",
        example="class_token,mask_token",
    ),
    "optimizer.b1": Key(
        0.9, "decay of AdamW's average of the gradients (beta1)", within=(0, 0.999999)
    ),
    "optimizer.b2": Key(
        0.95, "decay of AdamW's average of the squared gradients (beta2)", within=(0, 0.999999)
    ),
    "optimizer.clip_norm": Key(
        3.0,
        "largest norm of the whole gradient, to which larger ones are clipped; 0 for no clipping",
        within=(0, 10**6),
    ),
    "optimizer.micro_batches": Key(
        1,
        "equal parts in which a batch is computed one after the other, to save memory",
        within=(1, 10**6),
    ),
    "optimizer.skip_nonfinite": Key(
        0,
        "most steps in a row that are left out as their loss or gradient is not finite; one more "
        "ends the run",
        within=(0, 10**6),
    ),
    "data.source": Key(
        "folder",
        "where images come from: a folder, TensorFlow Datasets, or the digits of scikit-learn",
        choices=("digits", "tfds", "folder"),
    ),
    "data.name": Key("", "name of the dataset, for data.source=tfds", example="cifar10"),
    "data.data_dir": Key(
        "",
        "folder of the images, or of the data of TensorFlow Datasets; empty for its usual folder",
        example="/data",
        is_free=True,
        names_folder=True,
    ),
    "data.train_split": Key("train", "split that is trained on"),
    "data.test_split": Key(
        "validation", "split that is evaluated on; pretraining itself does not need it"
    ),
    "data.channels": Key(
        3,
        "channels of an image: 1 is grey, 3 is RGB; others come from .npy, .npz and TIFF files",
        within=(1, 1000),
    ),
    "data.mean": Key(
        (0.485, 0.456, 0.406),
        "mean of each channel, of values in [0, 1]; is subtracted from the pixels",
        within=(0, 1),
        length="data.channels",
        reason="as pixel values are divided by 255",
    ),
    "data.std": Key(
        (0.229, 0.224, 0.225),
        "standard deviation of each channel, of values in [0, 1]; the pixels are divided by it",
        within=(0.001, 1),
        length="data.channels",
        reason="as pixel values are divided by 255",
    ),
    "data.flip": Key(True, "whether training images are mirrored at random, left to right"),
    "data.num_workers": Key(
        0,
        "processes that decode images; 0 for threads of the training process",
        within=(0, 1024),
        is_free=True,
    ),
    "data.num_threads": Key(
        0,
        "threads in each process that decodes images; 0 for what suits the images",
        within=(0, 1024),
        is_free=True,
    ),
    "data.in_memory": Key(
        False, "whether all images are decoded once and kept; for small ones of one size"
    ),
    "data.max_corrupt_share": Key(
        0.01,
        "share of unreadable images above which the run stops",
        within=(0, 1),
        is_free=True,
    ),
    "data.max_pixels": Key(
        50_000_000,
        "most pixels of an image; larger images are skipped; 0 for Pillow's own limit",
        within=(0, 178_956_970),  # data.images.PILLOW_MAX_PIXELS
    ),
    "data.max_value": Key(
        0.0,
        "value that becomes white in images of more than 8 bits; 0 takes each file's own",
        within=(0, 1e38),
    ),
    "mesh.data": Key(
        -1,
        "devices over which the batch alone is split; -1 for all that mesh.fsdp leaves",
        is_free=True,
    ),
    "mesh.fsdp": Key(
        1,
        "devices over which parameters, optimizer and teacher are split as the batch is (ZeRO, "
        "stage 3); -1 for all that mesh.data leaves",
        is_free=True,
    ),
    "checkpoint.every_epochs": Key(
        1.0,
        "epochs from one checkpoint to the next; there is always one at the end",
        within=(ABOVE_0, math.inf),
        is_free=True,
    ),
    "checkpoint.keep_last": Key(
        2, "number of the latest checkpoints that are kept", within=(1, MANY), is_free=True
    ),
    "checkpoint.keep_every": Key(
        0,
        "one of so many checkpoints is kept for good; 0 for none",
        within=(0, MANY),
        is_free=True,
    ),
    "log.every_steps": Key(
        50, "steps from one record of the metrics to the next", within=(1, MANY), is_free=True
    ),
    "log.figures_every_epochs": Key(
        0.0,
        "epochs from one drawing of the figures to the next; 0: at the end of the run only",
        within=(0, math.inf),
        is_free=True,
    ),
    "log.tensorboard": Key(True, "whether metrics are written for TensorBoard too", is_free=True),
    "evaluation.batch_size": Key(
        256,
        "images a step of evaluation, over all devices together; of segmentation, windows of an "
        "image",
        within=(1, 10**6),
        is_free=True,
    ),
}
"""The keys that every job has."""

CROPS = {
    "data.crop_scale": Key(
        (0.2, 1.0),
        "least and largest area of a random crop, as a share of the image's",
        within=(0.001, 1),
        length=2,
        ascends=True,
    ),
    "data.crop_ratio": Key(
        (3 / 4, 4 / 3),
        "least and largest ratio of a random crop's width to its height",
        within=(0.01, 100),
        length=2,
        ascends=True,
    ),
}
"""Of those jobs that train on random resized crops."""

WHOLE_IMAGES = {
    "evaluation.crop_share": Key(
        0.0,
        "share of an image's sides that evaluation shows; 0: all of images of the input's size, "
        "0.875 of others",
        within=(0, 1),
        is_free=True,
    ),
    "evaluation.crop_mode": Key(
        "center",
        "how an image is fitted to the input: the middle is cut out, or the image is stretched",
        choices=("center", "squash"),
        is_free=True,
    ),
    "evaluation.interpolation": Key(
        "bicubic",
        "Pillow's kernel by which an image is resized",
        choices=("bicubic", "bilinear", "lanczos", "hamming", "box", "nearest"),
        is_free=True,
    ),
}
"""Of those jobs whose evaluation sees each image as a whole."""
