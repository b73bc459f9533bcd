"""The card of an exported encoder: how it was trained, how its features are read, whom to cite."""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from ddae_jax.config.keys import FOLDERS, flatten
from ddae_jax.config.pretraining import ignored_in_pretraining

_VIT = (
    "Dosovitskiy et al. 2021. *An Image is Worth 16x16 Words: Transformers for Image Recognition "
    "at Scale*. ICLR. arXiv:2010.11929"
)
_DDAE = (
    "Chen, Kong, Zhang, Zhao, Huang 2024. *DDAE: Towards Deep Dynamic Vision BERT Pretraining*. "
    "AAAI. doi:10.1609/aaai.v38i2.27864"
)
_BEIT = (
    "Bao, Dong, Piao, Wei 2022. *BEiT: BERT Pre-Training of Image Transformers*. ICLR. "
    "arXiv:2106.08254"
)
_BEIT2 = (
    "Peng, Dong, Bao, Ye, Wei 2022. *BEiT v2: Masked Image Modeling with Vector-Quantized Visual "
    "Tokenizers*. arXiv:2208.06366"
)
PAPERS = MappingProxyType(
    {
        "ddae": (_DDAE,),
        "mae": (
            "He, Chen, Xie, Li, Dollár, Girshick 2022. *Masked Autoencoders Are Scalable Vision "
            "Learners*. CVPR. arXiv:2111.06377",
        ),
        "simmim": (
            "Xie et al. 2022. *SimMIM: A Simple Framework for Masked Image Modeling*. CVPR. "
            "arXiv:2111.09886",
        ),
        "maskfeat": (
            "Wei et al. 2022. *Masked Feature Prediction for Self-Supervised Visual "
            "Pre-Training*. CVPR. arXiv:2112.09133",
        ),
        "beit": (_BEIT,),
        "beit2": (_BEIT2, _BEIT),
        "vqkd": (_BEIT2,),
    }
)
"""Those of each method."""

_SHOWN = ("model.", "decoder.", "mask.", "targets.", "tokenizer.", "supervision.", "teacher.")
_SHOWN += ("optimizer.", "data.crop", "data.flip", "seed")
_OF_THE_COMPUTATION = ("model.attention_form", "model.rematerialization")

_HOW_TO_LOAD = MappingProxyType(
    {
        "timm": """import timm
from PIL import Image

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
image = timm.data.create_transform(**data)(Image.open("photo.jpg").convert("{mode}"))
features = model(image[None])
tokens = model.forward_features(image[None])""",
        "transformers": """from PIL import Image
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{folder}"{options}).eval()
processor = AutoImageProcessor.from_pretrained("{folder}")
images = processor(Image.open("photo.jpg").convert("{mode}"), return_tensors="pt")
tokens = model(**images).last_hidden_state
features = {features}""",
    }
)
_ARRAYS = """
# An array of shape ({channels}, {sides}), its values from 0 to 1, of an image that has this size.
mean, std = (torch.tensor(values)[:, None, None] for values in ({mean}, {std}))
images = (torch.from_numpy(numpy.load("image.npy")).float()[None] - mean) / std
"""
_HOW_TO_LOAD_ARRAYS = MappingProxyType(
    {
        "timm": f"""import numpy
import timm
import torch

model = timm.create_model("local-dir:{{folder}}", pretrained=True).eval()
{_ARRAYS.strip()}
features = model(images)
tokens = model.forward_features(images)""",
        "transformers": f"""import numpy
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("{{folder}}"{{options}}).eval()
{_ARRAYS.strip()}
tokens = model(pixel_values=images).last_hidden_state
features = {{features}}""",
    }
)
_OPTIONS = MappingProxyType(
    {"ViTModel": ", add_pooling_layer=False", "ViTMAEForPreTraining": ", mask_ratio=0.0"}
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a card is about.

    Attributes:
        library: ``timm`` or ``transformers``.
        network: its class.
        folder: name of the folder.
        encoder: ``student`` or ``teacher``.
        step: of the checkpoint.
        use_class_token: whether the first token is a class token.
        is_imported: whether the weights are those of others, as they were.
    """

    library: str
    network: str
    folder: str
    encoder: str
    step: int
    use_class_token: bool
    is_imported: bool = False


def model_card(subject: Subject, config: ConfigDict) -> str:
    """The text of ``README.md``: Markdown, after what model hubs read of it.

    It names no folder of the machine that trained, and no number that nobody measured.

    Args:
        subject: what was exported.
        config: of the run.
    """
    data = config.data
    rows = {
        "method": config.method,
        "supervision": config.supervision.mode if config.method != "vqkd" else "last",
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
    papers = dict.fromkeys((*PAPERS[config.method], *_of_supervision(config), _VIT))
    if subject.is_imported:
        papers = {_VIT: None}
        training = (
            f"The weights were imported from `{pathlib.PurePath(config.init_from).name}` and not "
            "trained further; who made them says how, and under which license they are.",
        )
    else:
        if config.init_from:
            rows["began with"] = pathlib.PurePath(config.init_from).name
        training = (_table("", rows), _table("key", _settings(config)))
    told = "imported by" if subject.is_imported else "pretrained without labels by"
    return (
        "\n\n".join(
            (
                _front_matter(subject, config),
                f"# {subject.folder}",
                f"A vision transformer that was {told} `ddae_jax`; here as `{subject.network}` of "
                f"{subject.library}.",
                "## How it was trained",
                *training,
                "## How features are read",
                _table("", reading),
                _how_images_are_cut(subject, config),
                _how_features_are_read(subject, config),
                f"```python\n{_how_to_load(subject, config)}\n```",
                "## Citation",
                "\n".join(f"- {paper}" for paper in papers),
            )
        )
        + "\n"
    )


def how_to_load(subject: Subject, folder: str) -> str:
    """The line of code that loads it."""
    if subject.library == "timm":
        return f'timm.create_model("local-dir:{folder}", pretrained=True)'
    if subject.network == "ViTMAEForPreTraining":
        return f'transformers.AutoModelForPreTraining.from_pretrained("{folder}")'
    options = _OPTIONS.get(subject.network, "")
    return f'transformers.AutoModel.from_pretrained("{folder}"{options})'


def _front_matter(subject: Subject, config: ConfigDict) -> str:
    tags = ["image-feature-extraction"]
    if not subject.is_imported:
        tags += ["self-supervised-learning", "masked-image-modeling", config.method]
    lines = (f"library_name: {subject.library}", "tags:", *(f"- {t}" for t in tags))
    return "\n".join(("---", *lines, "---"))


def _table(name: str, rows: Mapping[str, Any]) -> str:
    lines = (f"| {key} | {value} |" for key, value in rows.items())
    return "\n".join((f"| {name} | |", "|---|---|", *lines))


def _settings(config: ConfigDict) -> dict[str, str]:
    """The keys that had an effect on what was trained, but for folders."""
    ignored = tuple(
        prefix
        for holds, prefixes, _ in ignored_in_pretraining(config)
        for prefix in prefixes
        if holds
    )
    return {
        f"`{key}`": f"`{value!r}`"
        for key, value in flatten(config).items()
        if key.startswith(_SHOWN)
        and not key.startswith(ignored)
        and key not in FOLDERS
        and key not in _OF_THE_COMPUTATION
    }


def _of_supervision(config: ConfigDict) -> tuple[str, ...]:
    is_last = config.method == "vqkd" or config.supervision.mode == "last"
    return () if is_last else (_DDAE,)


def _how_images_are_cut(subject: Subject, config: ConfigDict) -> str:
    height, width = config.model.image_size
    told = (
        "Evaluation showed it the middle of an image, 87.5 % of the sides, resized with a bicubic "
        "kernel; images that have the input's size already, uncut, and then they need no more than "
        "the normalisation. "
    )
    if subject.library == "transformers" and height != width:
        return told + "The processor here stretches whole images instead."
    return told + "The settings here cut images of any size, those too."


def _how_features_are_read(subject: Subject, config: ConfigDict) -> str:
    mean = config.evaluation.pool == "mean"
    told = (
        "Features of the tokens are those of the last block after the final norm; features of the "
        "image are "
    )
    told += "their mean over the patches" if mean else "the class token's"
    if mean and subject.use_class_token:
        told += ", without the class token"
    if subject.network == "ViTMAEForPreTraining":
        told += (
            ". `mask_ratio=0.0` shows the encoder all patches, in random order; with "
            "`AutoModelForPreTraining` decoder and head are there too"
        )
    elif subject.library == "transformers":
        told += ". The pooler's output was not trained"
    if subject.network == "Beit":
        told += ". Needs timm 1.0.31 or newer"
    return told + "."


def _how_to_load(subject: Subject, config: ConfigDict) -> str:
    mean = config.evaluation.pool == "mean"
    if config.data.channels not in (1, 3):
        return _HOW_TO_LOAD_ARRAYS[subject.library].format(
            folder=subject.folder,
            channels=config.data.channels,
            sides=", ".join(map(str, config.model.image_size)),
            mean=tuple(config.data.mean),
            std=tuple(config.data.std),
            options=_OPTIONS.get(subject.network, ""),
            features="tokens[:, 1:].mean(dim=1)" if mean else "tokens[:, 0]",
        )
    return _HOW_TO_LOAD[subject.library].format(
        folder=subject.folder,
        mode="RGB" if config.data.channels == 3 else "L",
        options=_OPTIONS.get(subject.network, ""),
        features="tokens[:, 1:].mean(dim=1)" if mean else "tokens[:, 0]",
    )
