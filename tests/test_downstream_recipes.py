"""The recipes of what comes after pretraining hold the values that were published."""

from typing import NamedTuple

import pytest

import tiny
from ddae_jax.builders.optimization import build_learning_rate
from ddae_jax.config.checks import check_config, ignored_keys
from ddae_jax.jobs import cli
from ddae_jax.jobs.job import make_schedule

IMAGENET, ADE20K = 1_281_167, 20_210
AN_EPOCH = IMAGENET // 1024


class Recipe(NamedTuple):
    """A recipe as it is published: learning rates are those of its batch, not of 256 images."""

    job: str
    num_images: int
    batch_size: int
    steps: int
    warmup_steps: int
    learning_rate: float
    end_learning_rate: float
    layer_decay: float
    drop_path_rate: float
    betas: tuple[float, float]
    weight_decay: float
    clip_norm: float
    crop_scale: tuple[float, float]
    decay_also: str = ""  # beside kernels


FINE_TUNING = {
    "job": "finetune",
    "num_images": IMAGENET,
    "batch_size": 1024,
    "betas": (0.9, 0.999),
    "weight_decay": 0.05,
    "end_learning_rate": 1e-6,
    "clip_norm": 0.0,
    "crop_scale": (0.08, 1.0),  # timm's, which both authors take
}
PUBLISHED = {
    # facebookresearch/mae, FINETUNE.md (ViT-Base), and defaults of main_finetune.py.
    "imagenet_finetune_vit_b16": Recipe(
        **FINE_TUNING,
        steps=100 * AN_EPOCH,
        warmup_steps=5 * AN_EPOCH,
        learning_rate=5e-4 * 1024 / 256,
        layer_decay=0.65,
        drop_path_rate=0.1,
    ),
    # The same, ViT-Large; He et al. 2022, table 9, but for the drop path, which is 0.1 there.
    "imagenet_finetune_vit_l16": Recipe(
        **FINE_TUNING,
        steps=50 * AN_EPOCH,
        warmup_steps=5 * AN_EPOCH,
        learning_rate=1e-3 * 1024 / 256,
        layer_decay=0.75,
        drop_path_rate=0.2,
    ),
    # microsoft/unilm, beit/get_started_for_image_classification.md (BEiT-base, pt22k), and defaults
    # of run_class_finetuning.py; Bao et al. 2021, table 13 of the version of 2022.
    "imagenet_finetune_beit_vit_b16": Recipe(
        **FINE_TUNING,
        steps=100 * AN_EPOCH,
        warmup_steps=20 * AN_EPOCH,
        learning_rate=4e-3,
        layer_decay=0.65,
        drop_path_rate=0.1,
        decay_also="relative_positions",  # --disable_weight_decay_on_rel_pos_bias is off
    ),
    # facebookresearch/mae, FINETUNE.md, and defaults of main_linprobe.py; He et al. 2022, table 10.
    "imagenet_linear_vit_b16": Recipe(
        job="finetune",
        num_images=IMAGENET,
        batch_size=16_384,
        steps=90 * (IMAGENET // 16_384),
        warmup_steps=10 * (IMAGENET // 16_384),
        learning_rate=0.1 * 16_384 / 256,
        end_learning_rate=0.0,
        layer_decay=0.65,  # of what is frozen
        drop_path_rate=0.0,
        betas=(0.9, 0.999),  # which LARS has not
        weight_decay=0.0,
        clip_norm=0.0,
        crop_scale=(0.08, 1.0),
    ),
    # open-mmlab/mmsegmentation, configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py.
    "ade20k_upernet_vit_b16": Recipe(
        job="segment",
        num_images=ADE20K,
        batch_size=16,
        steps=160_000,
        warmup_steps=1_500,
        learning_rate=1e-4,
        end_learning_rate=0.0,
        layer_decay=0.65,
        drop_path_rate=0.1,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        clip_norm=0.0,
        crop_scale=(0.5, 2.0),  # of the whole image, before a crop
    ),
}


def config_of(name):
    return cli.load_config(str(tiny.ROOT / "configs" / f"{name}.py"), PUBLISHED[name].job)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_recipe_is_the_published_one(name):
    config, wanted = config_of(name), PUBLISHED[name]
    config.init_from = "runs/pretrained"  # a probe of nothing is refused
    check_config(config)
    assert ignored_keys(config) == []
    options = config.optimizer
    schedule = make_schedule(config, wanted.num_images)
    learning_rate = build_learning_rate(config, schedule)
    scale = config.augment.scale_range if wanted.job == "segment" else config.data.crop_scale
    found = Recipe(
        job=config.job,
        num_images=wanted.num_images,
        batch_size=config.batch_size,
        steps=schedule.total_steps,
        warmup_steps=schedule.steps(options.warmup_epochs),
        learning_rate=pytest.approx(float(learning_rate(wanted.warmup_steps))),
        end_learning_rate=pytest.approx(float(learning_rate(wanted.steps)), rel=1e-3),
        layer_decay=options.layer_decay,
        drop_path_rate=config.model.drop_path_rate,
        betas=(options.b1, options.b2),
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
        crop_scale=tuple(scale),
        decay_also=options.decay_also,
    )
    assert found._asdict() == wanted._asdict()


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "finetune" in name])
def test_fine_tuning_regularises_as_published(name):
    augment = config_of(name).augment.to_dict()
    assert augment == {  # the commands above, and rand-m9-mstd0.5-inc1 of both programs
        "rand_augment": True,
        "num_operations": 2,
        "magnitude": 9.0,
        "magnitude_deviation": 0.5,
        "erasing_probability": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
        "mix_probability": 1.0,
        "label_smoothing": 0.1,
    }


def test_an_epoch_of_ade20k_has_so_many_steps_that_160_000_are_160_000():
    config = config_of("ade20k_upernet_vit_b16")
    schedule = make_schedule(config, ADE20K)
    assert schedule.length == {"steps_per_epoch": 1_263, "total_steps": 160_000}
