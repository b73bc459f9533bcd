"""The code in a model card, which loads an exported encoder and preprocesses images for it."""

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
"""Code that opens a photograph upright, by the number of channels that the encoder takes."""
_WHITE_OF_IMAGE = """white = max(255, 2 ** int(values.max()).bit_length() - 1)
if values.dtype.kind == "f":
    white = 1 if values.max() <= 2 else max(255, float(values.max()))"""
_SCALED = """{white}
values = (values.astype(float) * (255 / white)).round().clip(0, 255).astype("uint8")"""
_OPTIONS = MappingProxyType(
    {"ViTModel": ", add_pooling_layer=False", "ViTMAEForPreTraining": ", mask_ratio=0.0"}
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """The subject of a model card: an exported encoder.

    Attributes:
        library: ``timm`` or ``transformers``.
        network: name of its class in the library.
        folder: name of the exported folder.
        encoder: ``student`` or ``teacher``.
        step: of the checkpoint.
        use_class_token: whether the first token is a class token.
        is_imported: whether the weights were imported, and not trained further.
        trained_size: height and width of the images that imported weights were trained on; None if
            they are those of the config, or unknown.
        sha256: of the weights file.
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
    """Returns the line of code that loads the exported encoder."""
    if subject.library == "timm":
        return f'timm.create_model("local-dir:{folder}", pretrained=True)'
    if subject.network == "ViTMAEForPreTraining":
        return f'transformers.AutoModelForPreTraining.from_pretrained("{folder}")'
    options = _OPTIONS.get(subject.network, "")
    return f'transformers.AutoModel.from_pretrained("{folder}"{options})'


def is_pooled_by_beit(subject: Subject, pool: str) -> bool:
    """Returns whether transformers' own pooler computes the features of an image."""
    return subject.network == "BeitModel" and pool == "normed_mean"


def resized(config: ConfigDict) -> tuple[int, int]:
    """Returns the height and width that images are resized to before they are cropped."""
    options = config.evaluation
    share = options.crop_share or USUAL_SHARE
    return Preprocessing(share, options.crop_mode, options.interpolation).resized(
        tuple(config.model.image_size)
    )


def _cutting(config: ConfigDict) -> str:
    """Returns the code that resizes and crops an image as evaluation does."""
    (height, width), (resized_height, resized_width) = config.model.image_size, resized(config)
    options = config.evaluation
    kernel = f"Image.Resampling.{options.interpolation.upper()}"
    if options.crop_mode == "squash":
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
    if options.crop_mode == "center" or (resized_height, resized_width) != (height, width):
        lines += [
            f"left, top = round((width - {width}) / 2), round((height - {height}) / 2)",
            f"image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    return "\n".join(lines)


def plain_number(number: float) -> str:
    """Formats a number with all its digits, whole numbers without a decimal point."""
    return str(int(number)) if float(number).is_integer() else repr(number)


def code_to_load(subject: Subject, config: ConfigDict) -> str:
    """Returns the code of a card, which reads an image file and computes its features."""
    channels, max_value = config.data.channels, config.data.max_value
    has_photographs = channels in (1, 3)
    white = f"white = {plain_number(max_value)}" if max_value else _WHITE_OF_IMAGE
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
    """Returns the code that computes tokens with transformers, and the code that pools them."""
    tokens = f"tokens = model({inputs}).last_hidden_state"
    features = "tokens[:, 0]" if pool == "class_token" else "tokens[:, 1:].mean(dim=1)"
    if is_pooled_by_beit(subject, pool):
        features = f"model({inputs}).pooler_output"
    elif pool == "normed_mean":
        tokens = f"tokens = model({inputs}, output_hidden_states=True).hidden_states[-1]"
        features = f"model.layernorm({features})"
    return tokens, features
