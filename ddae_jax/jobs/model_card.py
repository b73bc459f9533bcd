"""The model card of an exported encoder: its training, its preprocessing, papers to cite."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config.keys import FOLDERS
from ddae_jax.config.pretraining import ignored_in_pretraining
from ddae_jax.config.schema import flatten
from ddae_jax.jobs.card_code import Subject, code_to_load, is_pooled_by_beit, plain_number, resized
from ddae_jax.methods import METHODS
from ddae_jax.methods.supervision import PAPER

_VIT = (
    "Dosovitskiy et al. 2021. *An Image is Worth 16x16 Words: Transformers for Image Recognition "
    "at Scale*. ICLR. arXiv:2010.11929"
)
_CARD_KEYS = ("model.", "decoder.", "mask.", "targets.", "tokenizer.", "supervision.", "teacher.")
_CARD_KEYS += ("optimizer.", "data.crop", "data.flip", "seed")
_COMPUTATION_KEYS = ("model.attention_form", "model.rematerialization")


def model_card(subject: Subject, config: ConfigDict) -> str:
    """Returns the text of ``README.md``: front matter for model hubs, then Markdown.

    It contains no path of the machine that trained, and only numbers that were measured.

    Args:
        subject: the exported encoder.
        config: of the run.
    """
    data = config.data
    rows = {
        "method": config.method,
        "supervision": _supervision_mode(config),
        "dataset": f"{data.source} {data.name}".strip(),
        "encoder": subject.encoder,
        "epochs planned": f"{config.epochs:g}",
        "step": subject.step,
        "batch": config.batch_size,
    }
    height, width = config.model.image_size
    reading = {
        "input": f"{height} x {width} pixels, {data.channels} channels, values from 0 to 1",
        "mean": ", ".join(f"{value:g}" for value in data.mean),
        "standard deviation": ", ".join(f"{value:g}" for value in data.std),
        "patch": f"{config.model.patch_size} x {config.model.patch_size} pixels",
    }
    if subject.sha256:
        reading["SHA-256 of `model.safetensors`"] = f"`{subject.sha256}`"
    papers = dict.fromkeys((*METHODS[config.method].papers, *_supervision_papers(config), _VIT))
    if subject.is_imported:
        papers = {_VIT: None}
        training = (_how_it_was_imported(subject, config),)
    else:
        if config.init_from:
            rows["began with"] = pathlib.PurePath(config.init_from).name
        training = (_table("", rows), _table("key", _settings(config)))
    origin = "imported by" if subject.is_imported else "pretrained without labels by"
    return (
        "\n\n".join(
            (
                _front_matter(subject, config),
                f"# {subject.folder}",
                f"A vision transformer that was {origin} `ddae_jax`; here as `{subject.network}` "
                f"of {subject.library}.",
                "## How it was trained",
                *training,
                "## How features are read",
                _table("", reading),
                _how_images_are_cut(subject, config),
                _how_values_are_scaled(config),
                _how_features_are_read(subject, config),
                f"```python\n{code_to_load(subject, config)}\n```",
                "## Citation",
                "\n".join(f"- {paper}" for paper in papers),
            )
        )
        + "\n"
    )


def _front_matter(subject: Subject, config: ConfigDict) -> str:
    """Returns the YAML that model hubs read: library and tags."""
    tags = ["image-feature-extraction"]
    if not subject.is_imported:
        tags += ["self-supervised-learning", "masked-image-modeling", config.method]
    lines = (f"library_name: {subject.library}", "tags:", *(f"- {t}" for t in tags))
    return "\n".join(("---", *lines, "---"))


def _table(name: str, rows: Mapping[str, Any]) -> str:
    """Returns a Markdown table of two columns; ``name`` heads the first one."""
    lines = (f"| {key} | {value} |" for key, value in rows.items())
    return "\n".join((f"| {name} | |", "|---|---|", *lines))


def _settings(config: ConfigDict) -> dict[str, str]:
    """Returns the keys that affected training, and their values, without folders."""
    ignored = tuple(
        prefix
        for holds, prefixes, _ in ignored_in_pretraining(config)
        for prefix in prefixes
        if holds
    )
    return {
        f"`{key}`": f"`{value!r}`"
        for key, value in flatten(config).items()
        if key.startswith(_CARD_KEYS)
        and not key.startswith(ignored)
        and key not in FOLDERS
        and key not in _COMPUTATION_KEYS
    }


def _how_it_was_imported(subject: Subject, config: ConfigDict) -> str:
    """Describes the origin of imported weights."""
    text = (
        f"The weights were imported from `{pathlib.PurePath(config.init_from).name}` and not "
        "trained further; who made them says how, and under which license they are."
    )
    if subject.trained_size and subject.trained_size != tuple(config.model.image_size):
        before, now = (
            f"{height} x {width}"
            for height, width in (subject.trained_size, config.model.image_size)
        )
        text += (
            f" They were trained on images of {before} pixels; their positions were resized for "
            f"{now} pixels, without any training."
        )
    return text


def _supervision_papers(config: ConfigDict) -> tuple[str, ...]:
    """Returns the paper on deep supervision, if the run uses it."""
    return () if _supervision_mode(config) == "last" else (PAPER,)


def _supervision_mode(config: ConfigDict) -> str:
    """Returns the mode of supervision; tokenizers are supervised at the last depth."""
    is_masked = METHODS[config.method].kind == "masked"
    return config.supervision.mode if is_masked else "last"


def _how_images_are_cut(subject: Subject, config: ConfigDict) -> str:
    """Describes how evaluation resizes and crops images."""
    height, width = config.model.image_size
    resized_height, resized_width = resized(config)
    options = config.evaluation
    if options.crop_mode == "squash":
        text = f"An image is stretched to {resized_height} x {resized_width} pixels"
    elif resized_height == resized_width:
        text = f"An image is resized in proportion, its shorter side to {resized_height} pixels"
    else:
        text = (
            "An image is resized in proportion, so that it just covers "
            f"{resized_height} x {resized_width} pixels"
        )
    text += f", with a {options.interpolation} kernel"
    if (resized_height, resized_width) != (height, width) or options.crop_mode == "center":
        text += f"; shown are the {height} x {width} pixels in the middle"
    text += ". `ddae_jax.evaluate` shows the same pixels"
    if not options.crop_share:
        text += (
            ", but for images that have the input's size already: of them it shows all, and they "
            "need no more than the normalisation"
        )
    text += ". What is transparent counts as white there. "
    if config.data.channels not in (1, 3):
        return text + "The code below is for an array of the input's size."
    if subject.library == "timm":
        return text + "timm's transform here does it all, once the image has 8 bits."
    if options.crop_mode == "center" and height != width:
        return text + "The processor here cannot cut images, and is given what is cut."
    text += "The code below cuts images itself. "
    if options.crop_mode == "center":
        text += (
            "The processor alone begins a pixel earlier in images of some shapes, as it rounds "
            "half a pixel otherwise. "
        )
    return text + "With torchvision, the processor resizes by other code, which rounds otherwise."


def _how_values_are_scaled(config: ConfigDict) -> str:
    """Describes how pixel values of more than 8 bits are scaled to 8 bits."""
    max_value = config.data.max_value
    text = (
        "Values of 8 bits are divided by 255. Images of more bits are scaled to 8 before all else, "
    )
    if max_value:
        text += (
            f"so that {plain_number(max_value)} becomes 255, and with it what is larger "
            "(`data.max_value` of the run)"
        )
    else:
        text += (
            "each by its own range: white is what its largest value's number of bits can hold, "
            "such as 4095 for 12 bits; of floats 1 if none is above 2, else 255 or, if it is "
            "larger, their largest (`data.max_value=0`)"
        )
    if config.data.channels not in (1, 3):
        return text + (
            ". The code below does so where no value is below 0 or missing; `ddae_jax` reads those "
            "too."
        )
    return text + (
        ". The code below does so for PNG and TIFF files of one channel, where no value is below 0 "
        "or missing. Pillow opens other files of more bits as `ddae_jax` does not: of colours it "
        "keeps the upper 8 bits, and it spreads PGM and JPEG 2000 over 16. Of these, values have "
        "to be read otherwise, and scaled alike."
    )


def _how_features_are_read(subject: Subject, config: ConfigDict) -> str:
    """Describes from which tokens features are read, and how they are pooled."""
    pool = config.evaluation.pool
    if pool == "normed_mean":
        text = (
            "Features of the tokens are those of the last block before the final norm; features "
            "of the image are that norm of their mean over the patches"
        )
    else:
        text = (
            "Features of the tokens are those of the last block after the final norm; features of "
            "the image are "
        )
        text += "the class token's" if pool == "class_token" else "their mean over the patches"
    if pool != "class_token" and subject.use_class_token:
        text += ", without the class token"
    if subject.network == "ViTMAEForPreTraining":
        text += (
            ". `mask_ratio=0.0` shows the encoder all patches, in random order; with "
            "`AutoModelForPreTraining` decoder and head are there too"
        )
    elif subject.library == "transformers" and not is_pooled_by_beit(subject, pool):
        text += ". The pooler's output was not trained"
    if subject.network == "Beit":
        text += ". Needs timm 1.0.31 or newer"
    text += ". `ddae_jax.evaluate --task=embed` gives the same features of the same images"
    if config.model.dtype != "float32":
        text += f", in {config.model.dtype} unless `--dtype=float32` is given"
    return f"{text}."
