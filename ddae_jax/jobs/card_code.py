"""The code in a card: how an exported encoder is loaded, and shown what evaluation shows it."""

import dataclasses
import textwrap
from types import MappingProxyType

from ml_collections import ConfigDict

from ddae_jax.data.view import USUAL_SHARE
from ddae_jax.interop.preprocessing import Preprocessing

_HOW_TO_LOAD = MappingProxyType(
    {
        "timm": """import numpy
import timm
from PIL import Image, ImageOps

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
{open}
images = transform(image)[None]
features = model(images)
tokens = model.forward_features(images)""",
        "transformers": """import numpy
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{folder}"{options}).eval()
processor = AutoImageProcessor.from_pretrained("{folder}")
{open}
{cut}
images = processor(image, {uncut}, return_tensors="pt")
{tokens}
features = {features}""",
    }
)
_ARRAYS = """
# An array of shape ({channels}, {sides}), as it is in its file, of an image that has this size.
values = numpy.load("image.npy")
if values.dtype != "uint8":  # it has more than 8 bits
    {scaled}
mean, std = (torch.tensor(of_each)[:, None, None] for of_each in ({mean}, {std}))
images = (torch.from_numpy(values).float()[None] / 255 - mean) / std
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
{{tokens}}
features = {{features}}""",
    }
)
_OPEN = """{photo}
if photo.mode.startswith(("I", "F")):  # it has more than 8 bits
    values = numpy.asarray(photo)
    {scaled}
    photo = Image.fromarray(values)
image = photo.convert("{mode}")"""
_PHOTO = MappingProxyType(
    {
        3: """photo = ImageOps.exif_transpose(Image.open("photo.jpg"))""",
        1: """photo = Image.open("photo.jpg")
photo.draft("L", photo.size)  # the brightness, as a JPEG has it
photo = ImageOps.exif_transpose(photo)""",
    }
)
"""How a photograph is opened upright, by the number of channels that are made of it."""
_BY_ITSELF = """white = max(255, 2 ** int(values.max()).bit_length() - 1)
if values.dtype.kind == "f":
    white = 1 if values.max() <= 2 else max(255, float(values.max()))"""
_SCALED = """{white}
values = (values.astype(float) * (255 / white)).round().clip(0, 255).astype("uint8")"""
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
        trained_size: height and width of the images of imported weights; None if they are those of
            the config, or not known.
        sha256: of the file of weights.
    """

    library: str
    network: str
    folder: str
    encoder: str
    step: int
    use_class_token: bool
    is_imported: bool = False
    trained_size: tuple[int, int] | None = None
    sha256: str = ""


def how_to_load(subject: Subject, folder: str) -> str:
    """The line of code that loads it."""
    if subject.library == "timm":
        return f'timm.create_model("local-dir:{folder}", pretrained=True)'
    if subject.network == "ViTMAEForPreTraining":
        return f'transformers.AutoModelForPreTraining.from_pretrained("{folder}")'
    options = _OPTIONS.get(subject.network, "")
    return f'transformers.AutoModel.from_pretrained("{folder}"{options})'


def is_pooled_by_beit(subject: Subject, pool: str) -> bool:
    """Tells whether transformers' own pooler computes the features of an image."""
    return subject.network == "BeitModel" and pool == "normed_mean"


def resized(config: ConfigDict) -> tuple[int, int]:
    """Computes what images are resized to before they are cropped, height and width."""
    shown = config.evaluation
    share = shown.crop_share or USUAL_SHARE
    return Preprocessing(share, shown.crop_mode, shown.interpolation).resized(
        tuple(config.model.image_size)
    )


def _cutting(config: ConfigDict) -> str:
    """Writes the code that cuts an image as evaluation does."""
    (height, width), (resized_height, resized_width) = config.model.image_size, resized(config)
    shown = config.evaluation
    kernel = f"Image.Resampling.{shown.interpolation.upper()}"
    if shown.crop_mode == "squash":
        lines = [f"width, height = {resized_width}, {resized_height}"]
    elif resized_height == resized_width:
        lines = [
            f"width, height = ({resized_width} * side // min(image.size) for side in image.size)"
        ]
    else:
        lines = [
            f"scale = min(image.width / {resized_width}, image.height / {resized_height})",
            "width, height = round(image.width / scale), round(image.height / scale)",
        ]
    lines.append(f"image = image.resize((width, height), {kernel})")
    if shown.crop_mode == "center" or (resized_height, resized_width) != (height, width):
        lines += [
            f"left, top = round((width - {width}) / 2), round((height - {height}) / 2)",
            f"image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    return "\n".join(lines)


def plain_number(number: float) -> str:
    """Writes a number in full, and a whole one without a point."""
    return str(int(number)) if float(number).is_integer() else repr(number)


def code_to_load(subject: Subject, config: ConfigDict) -> str:
    """Writes the code of a card: from a file of an image to its features."""
    channels, max_value = config.data.channels, config.data.max_value
    has_photographs = channels in (1, 3)
    white = f"white = {plain_number(max_value)}" if max_value else _BY_ITSELF
    scaled = textwrap.indent(_SCALED.format(white=white), "    ").lstrip()
    inputs = "**images" if has_photographs else "pixel_values=images"
    tokens, features = _tokens_and_features(subject, config.evaluation.pool, inputs)
    common = {
        "folder": subject.folder,
        "options": _OPTIONS.get(subject.network, ""),
        "tokens": tokens,
        "features": features,
    }
    if not has_photographs:
        return _HOW_TO_LOAD_ARRAYS[subject.library].format(
            channels=channels,
            scaled=scaled,
            sides=", ".join(map(str, config.model.image_size)),
            mean=tuple(config.data.mean),
            std=tuple(config.data.std),
            **common,
        )
    (height, width), is_center = config.model.image_size, config.evaluation.crop_mode == "center"
    is_cropped = is_center or resized(config) != (height, width)
    return _HOW_TO_LOAD[subject.library].format(
        open=_OPEN.format(
            photo=_PHOTO[channels], scaled=scaled, mode="L" if channels == 1 else "RGB"
        ),
        cut=_cutting(config),
        uncut="do_resize=False" + (", do_center_crop=False" if is_cropped else ""),
        **common,
    )


def _tokens_and_features(subject: Subject, pool: str, inputs: str) -> tuple[str, str]:
    """Writes the code that gives a network of transformers its inputs, and that which pools."""
    tokens = f"tokens = model({inputs}).last_hidden_state"
    features = "tokens[:, 0]" if pool == "class_token" else "tokens[:, 1:].mean(dim=1)"
    if is_pooled_by_beit(subject, pool):
        features = f"model({inputs}).pooler_output"
    elif pool == "normed_mean":
        tokens = f"tokens = model({inputs}, output_hidden_states=True).hidden_states[-1]"
        features = f"model.layernorm({features})"
    return tokens, features
