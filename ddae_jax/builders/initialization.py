"""Initialization of a run from a pretrained encoder, the config's ``init_from``."""

import logging
from collections.abc import Container, Iterable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.networks import build_encoder
from ddae_jax.builders.pretrained import Pretrained, check_fits, load_decoder, load_pretrained
from ddae_jax.config.checks import check_config
from ddae_jax.config.downstream import (
    INHERITED_KEYS,
    check_architecture,
    check_size_is_known,
)
from ddae_jax.config.schema import flatten
from ddae_jax.config.values import typed
from ddae_jax.interop.architecture import WeightHints
from ddae_jax.methods.task import TrainTask
from ddae_jax.models.resize import adapt_encoder
from ddae_jax.training.checkpoint_contents import differences

_log = logging.getLogger(__name__)


# Keys that the command line may override: they change the shape of no array.
_OVERRIDABLE_KEYS = ("data.mean", "data.std", "model.norm_epsilon")


def inherit_architecture(
    config: ConfigDict,
    stored: Mapping[str, Any] | None,
    given: Container[str] = (),
    learns_positions: bool = False,
) -> Pretrained | None:
    """Copies architecture and pixel statistics from ``init_from`` into the config.

    A continued run reads them from its stored config, so ``init_from`` may have moved since.

    Args:
        config: of the run; is changed in place.
        stored: the stored config of a continued run; None for a new one.
        given: keys that the command line sets. Pixel statistics and the norms' epsilon among them
            override those of the encoder, with a warning.
        learns_positions: whether sine-cosine positions become learned ones that begin with the same
            values.

    Returns:
        The encoder in ``init_from``; None if it is not set, and for a continued run.

    Raises:
        ValueError: if the command line gives another architecture than the encoder has, and as
            :func:`ddae_jax.builders.pretrained.load_pretrained` does.
        FileNotFoundError: if there is nothing at ``init_from``.
    """
    if not config.init_from:
        return None
    pretrained = None
    if stored is None:
        pretrained = load_init_from(config)
        _adopt(config, pretrained, given, learns_positions)
    else:
        values = flatten(stored)
        config.update_from_flattened_dict(
            # Given keys keep their values; a later check refuses those that differ from the stored.
            {key: typed(key, values[key], config.job) for key in INHERITED_KEYS if key not in given}
        )
        if not any(config.model.image_size):
            config.model.image_size = tuple(values["model.image_size"])
    check_config(config)
    return pretrained


def inherit_to_finetune(
    config: ConfigDict, stored: Mapping[str, Any] | None, given: Container[str] = ()
) -> Pretrained | None:
    """Copies the architecture of the encoder in ``init_from``, and makes its positions learned.

    Returns and raises what :func:`inherit_architecture` does; also raises ``ValueError`` for keys
    that need something the encoder does not have.
    """
    pretrained = inherit_architecture(config, stored, given, learns_positions=True)
    check_size_is_known(config)
    check_architecture(config)
    return pretrained


def starting_point(config: ConfigDict) -> str:
    """Describes the origin of a fine-tuned encoder, for the log."""
    is_fresh = not config.init_from or config.from_scratch
    return "from scratch" if is_fresh else f"from {config.init_from}"


def inherit_all(config: ConfigDict, given: Container[str]) -> Pretrained:
    """Copies architecture, pixel statistics, preprocessing and pooling from ``init_from``.

    Beside what :func:`inherit_architecture` copies, these are the image size, how images are
    resized and cropped, and how features are pooled. Keys that the command line sets override
    them, with a warning where they differ.

    Args:
        config: of imported weights; is changed in place.
        given: keys that the command line sets.

    Returns:
        The encoder in ``init_from``.

    Raises:
        ValueError: as :func:`inherit_architecture` does, and for keys that contradict each other.
        FileNotFoundError: if there is nothing at ``init_from``.
    """
    pretrained = load_init_from(config)
    inherited = {"model.image_size": tuple(pretrained.module.image_size)}
    inherited |= {f"evaluation.{name}": value for name, value in pretrained.evaluation.items()}
    flat = flatten(config)
    overridden = {key for key, value in inherited.items() if key in given and flat[key] != value}
    updates = {key: value for key, value in inherited.items() if key not in given}
    config.update_from_flattened_dict(updates)
    lines = [
        f"{key}={value!r}" + (f" (the config: {flat[key]!r})" if flat[key] != value else "")
        for key, value in updates.items()
    ]
    _log.info("taken over from %s: %s", config.init_from, ", ".join(lines) or "nothing")
    for key in sorted(overridden):
        _log.warning("%s=%r is given; %s has %r", key, flat[key], config.init_from, inherited[key])
    _adopt(config, pretrained, given, learns_positions=False)
    check_config(config)
    return pretrained


def _adopt(
    config: ConfigDict, pretrained: Pretrained, given: Container[str], learns_positions: bool
) -> None:
    """Copies architecture and pixel statistics of an encoder into the config, in place."""
    before = flatten(config)
    config.model.update(pretrained.model)
    size, trained = tuple(config.model.image_size), tuple(pretrained.module.image_size)
    if not any(size):
        config.model.image_size = trained
    elif size != trained:
        _log.info(
            "model.image_size=%s, and the encoder in %s was trained on images of %s: its positions "
            "are resized",
            size,
            config.init_from,
            trained,
        )
    pool = pretrained.evaluation.get("pool")
    if "pool" in config.model and pool and pool.replace("normed_", "") != config.model.pool:
        _log.info(
            "model.pool=%r is what is fine-tuned; the encoder in %s is read by %r",
            config.model.pool,
            config.init_from,
            pool,
        )
    if learns_positions and config.model.positions == "sincos":
        config.model.positions = "learned"
    if pretrained.mean is None:
        _check_channels(config, pretrained)
        _log.warning(
            "%s does not say which pixel values it was trained on; data.mean=%s and data.std=%s "
            "are taken",
            config.init_from,
            config.data.mean,
            config.data.std,
        )
    else:
        config.data.channels = len(pretrained.mean)
        config.data.mean, config.data.std = pretrained.mean, pretrained.std
    given = [key for key in INHERITED_KEYS if key in given]
    if before["model.positions"] == pretrained.model["positions"]:  # learned from now on
        given = [key for key in given if key != "model.positions"]
    _apply_given(config, before, given)


def _apply_given(config: ConfigDict, before: Mapping[str, Any], given: Iterable[str]) -> None:
    """Restores given values that differ from the encoder's; raises ``ValueError`` for the others.

    Only :data:`_OVERRIDABLE_KEYS` may differ.
    """
    after = flatten(config)
    for key in sorted(key for key in given if before[key] != after[key]):
        if key not in _OVERRIDABLE_KEYS:
            raise ValueError(
                f"{key}={before[key]!r} is given, and the encoder in {config.init_from} has "
                f"{after[key]!r}: leave it out"
            )
        _log.warning("%s=%r is given; %s has %r", key, before[key], config.init_from, after[key])
        config.update_from_flattened_dict({key: before[key]})


def _check_channels(config: ConfigDict, pretrained: Pretrained) -> None:
    """Raises ``ValueError`` if the encoder takes another number of channels than the config's."""
    patch_values = pretrained.params["patch_embedding"]["kernel"].shape[0]
    channels = patch_values // pretrained.module.patch_size**2
    if channels != config.data.channels:
        raise ValueError(
            f"init_from={config.init_from!r} is an encoder for images of {channels} channels, but "
            f"data.channels={config.data.channels}: set --config.data.channels={channels}, with as "
            "many values in data.mean and data.std"
        )


def load_init_from(config: ConfigDict) -> Pretrained:
    """Loads the encoder that ``init_from`` names, using the config's hints about its weights.

    Raises as :func:`ddae_jax.builders.pretrained.load_pretrained` does.
    """
    encoder = config.get("init_encoder", "student")  # configs of pretraining have no such key
    return load_pretrained(config.init_from, encoder, _weight_hints(config))


def _weight_hints(config: ConfigDict) -> WeightHints:
    """Returns the keys that describe weights whose file does not."""
    return WeightHints(config.init_heads, config.init_activation, config.init_part)


def initial_params(config: ConfigDict, pretrained: Pretrained | None) -> PyTree | None:
    """Returns the pretrained encoder's parameters, adapted to the config; None without an encoder.

    Args:
        config: of the run, resolved by :func:`inherit_architecture`.
        pretrained: the encoder in ``init_from``, if there is one.

    Raises ``ValueError``, naming the first differences, for parameters that do not fit.
    """
    if pretrained is None:
        return None
    encoder = build_encoder(config)
    params = adapt_encoder(pretrained.params, pretrained.module, encoder)
    check_fits(params, encoder, config.data.channels, config.init_from)
    return {"encoder": params}


def initial_decoder(config: ConfigDict, method: TrainTask) -> PyTree:
    """Returns pretrained parameters of decoder and head; {} without ``init_decoder``.

    Raises ``ValueError``, naming the first differences, if they do not fit the method's.
    """
    if not (config.init_from and config.init_decoder):
        return {}
    params, heads = load_decoder(config.init_from, _weight_hints(config))
    shapes = jax.eval_shape(lambda key: method.init(key, config.data.channels), jax.random.key(0))
    shapes = {name: shapes[name] for name in params}
    width = params["decoder"]["embedding"]["kernel"].shape[1]
    depth = sum(name.startswith("block_") for name in params["decoder"])
    message = differences(params, shapes, "there")
    if message or heads not in (None, config.decoder.num_heads):
        raise ValueError(
            f"init_decoder=True: the decoder in {config.init_from} is not this run's; set "
            f"method='mae', decoder.width={width}, decoder.depth={depth}, decoder.num_heads="
            f"{heads or config.decoder.num_heads}, or init_decoder=False. {message}"
        )
    if heads is None:
        _log.warning(
            "%s does not tell the heads of its decoder; decoder.num_heads=%d are taken",
            config.init_from,
            config.decoder.num_heads,
        )
    return params
