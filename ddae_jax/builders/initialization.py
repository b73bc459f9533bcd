"""How a run begins with an encoder that somebody has trained: a run's, or published weights."""

import logging
from collections.abc import Container, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddae_jax.builders.networks import build_encoder
from ddae_jax.builders.pretrained import Pretrained, check_fits, load_decoder, load_pretrained
from ddae_jax.config.checks import check_config
from ddae_jax.config.downstream import TOLD_BY_INIT_FROM
from ddae_jax.config.schema import flatten
from ddae_jax.config.values import typed
from ddae_jax.interop.described import Told
from ddae_jax.methods.task import Trainable
from ddae_jax.models.resize import adapt_encoder
from ddae_jax.training.checkpoint_contents import differences
from ddae_jax.training.state import TrainState

_log = logging.getLogger(__name__)


# What the command line may say otherwise than the encoder: it changes no array's shape.
_GIVEN_COUNTS = ("data.mean", "data.std", "model.norm_epsilon")


def take_over(
    config: ConfigDict,
    stored: Mapping[str, Any] | None,
    given: Container[str] = (),
    learns_positions: bool = False,
) -> None:
    """Takes over from ``init_from`` what it tells: the architecture, and the pixels' statistics.

    A run that is continued has it in its own config, wherever its beginning is now.

    Args:
        config: of the run; is changed in place.
        stored: the config of a run that is continued, else None.
        given: keys that the command line sets. Pixel statistics and the norms' epsilon count more
            than what the encoder has, which a warning says.
        learns_positions: whether sine-cosine positions become learned ones, which begin as these.

    Raises as :func:`ddae_jax.builders.pretrained.load_pretrained` does, and ``ValueError`` if the
    command line gives another architecture than the encoder has.
    """
    if not config.init_from:
        return
    if stored is not None:
        told = flatten(stored)
        config.update_from_flattened_dict(
            # What is given is compared with what is stored, and refused if it is something else.
            {
                key: typed(key, told[key], config.job)
                for key in TOLD_BY_INIT_FROM
                if key not in given
            }
        )
        if not any(config.model.image_size):
            config.model.image_size = tuple(told["model.image_size"])
    else:
        _adopt(config, given, learns_positions)
    check_config(config)


def take_over_all(config: ConfigDict, given: Container[str]) -> None:
    """Takes over what :func:`take_over` does, and how ``init_from`` is shown images and read.

    That is the size of the images, how they are cut to it, and how features are pooled. What the
    command line gives counts more; where that is something else, it is said in a warning.

    Args:
        config: of imported weights; is changed in place.
        given: keys that the command line sets.

    Raises as :func:`take_over` does, and ``ValueError`` for keys that contradict each other.
    """
    found = load_init_from(config)
    told = {"model.image_size": tuple(found.module.image_size)}
    told |= {f"evaluation.{name}": value for name, value in found.evaluation.items()}
    flat = flatten(config)
    kept = {key for key, value in told.items() if key in given and flat[key] != value}
    taken = {key: value for key, value in told.items() if key not in given}
    config.update_from_flattened_dict(taken)
    shown = [
        f"{key}={value!r}" + (f" (the config: {flat[key]!r})" if flat[key] != value else "")
        for key, value in taken.items()
    ]
    _log.info("taken over from %s: %s", config.init_from, ", ".join(shown) or "nothing")
    for key in sorted(kept):
        _log.warning("%s=%r is given; %s has %r", key, flat[key], config.init_from, told[key])
    _adopt(config, given, learns_positions=False)
    check_config(config)


def _adopt(config: ConfigDict, given: Container[str], learns_positions: bool) -> None:
    found, before = load_init_from(config), flatten(config)
    config.model.update(found.model)
    size, trained = tuple(config.model.image_size), tuple(found.module.image_size)
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
    pool = found.evaluation.get("pool")
    if "pool" in config.model and pool and pool.replace("normed_", "") != config.model.pool:
        _log.info(
            "model.pool=%r is what is fine-tuned; the encoder in %s is read by %r",
            config.model.pool,
            config.init_from,
            pool,
        )
    if learns_positions and config.model.positions == "sincos":
        config.model.positions = "learned"
    if found.mean is None:
        _check_channels(config, found)
        _log.warning(
            "%s does not say which pixel values it was trained on; data.mean=%s and data.std=%s "
            "are taken",
            config.init_from,
            config.data.mean,
            config.data.std,
        )
    else:
        config.data.channels = len(found.mean)
        config.data.mean, config.data.std = found.mean, found.std
    given = [key for key in TOLD_BY_INIT_FROM if key in given]
    if before["model.positions"] == found.model["positions"]:  # which are learned from now on
        given = [key for key in given if key != "model.positions"]
    _settle_given(config, before, given)


def _settle_given(config: ConfigDict, before: Mapping[str, Any], given: Iterable[str]) -> None:
    """Lets given keys count, of those that are not as the encoder has them, or refuses them."""
    after = flatten(config)
    for key in sorted(key for key in given if before[key] != after[key]):
        if key not in _GIVEN_COUNTS:
            raise ValueError(
                f"{key}={before[key]!r} is given, and the encoder in {config.init_from} has "
                f"{after[key]!r}: leave it out"
            )
        _log.warning("%s=%r is given; %s has %r", key, before[key], config.init_from, after[key])
        config.update_from_flattened_dict({key: before[key]})


def _check_channels(config: ConfigDict, found: Pretrained) -> None:
    """Raises ``ValueError`` if an encoder is for images of other channels than the config's."""
    values = found.params["patch_embedding"]["kernel"].shape[0]
    channels = values // found.module.patch_size**2
    if channels != config.data.channels:
        raise ValueError(
            f"init_from={config.init_from!r} is an encoder for images of {channels} channels, but "
            f"data.channels={config.data.channels}: set --config.data.channels={channels}, with as "
            "many values in data.mean and data.std"
        )


def load_init_from(config: ConfigDict) -> Pretrained:
    """Loads the encoder that ``init_from`` names, with what the config tells of it.

    Raises as :func:`ddae_jax.builders.pretrained.load_pretrained` does.
    """
    return load_pretrained(config.init_from, config.get("init_encoder", "student"), _told(config))


def _told(config: ConfigDict) -> Told:
    return Told(config.init_heads, config.init_activation, config.init_part)


def start_params(config: ConfigDict) -> PyTree | None:
    """The encoder's parameters that training begins with; None for fresh ones.

    Raises ``ValueError``, naming the first differences, for what does not fit.
    """
    if not config.init_from or config.get("from_scratch", False):
        return None
    found = load_init_from(config)
    encoder = build_encoder(config)
    params = adapt_encoder(found.params, found.module, encoder)
    check_fits(params, encoder, config.data.channels, config.init_from)
    return params


def start_decoder(config: ConfigDict, method: Trainable) -> PyTree | None:
    """The parameters of decoder and head that pretraining begins with; None for fresh ones.

    Raises ``ValueError``, naming the first differences, for what does not fit the method's.
    """
    if not (config.init_from and config.init_decoder):
        return None
    found, heads = load_decoder(config.init_from, _told(config))
    wanted = jax.eval_shape(lambda key: method.init(key, config.data.channels), jax.random.key(0))
    wanted = {name: wanted[name] for name in found}
    width = found["decoder"]["embedding"]["kernel"].shape[1]
    depth = sum(name.startswith("block_") for name in found["decoder"])
    told = differences(found, wanted, "there")
    if told or heads not in (None, config.decoder.num_heads):
        raise ValueError(
            f"init_decoder=True: the decoder in {config.init_from} is not this run's; set "
            f"method='mae', decoder.width={width}, decoder.depth={depth}, decoder.num_heads="
            f"{heads or config.decoder.num_heads}, or init_decoder=False. {told}"
        )
    if heads is None:
        _log.warning(
            "%s does not tell the heads of its decoder; decoder.num_heads=%d are taken",
            config.init_from,
            config.decoder.num_heads,
        )
    return found


def begin(
    state: TrainState, method: Trainable, params: PyTree | None, beside: PyTree | None = None
) -> TrainState:
    """A fresh state whose encoder has these parameters, and so has what follows it.

    What the parameters lack, such as a mask token, stays fresh.

    Args:
        state: the fresh one.
        method: that trains it.
        params: of the encoder; None leaves all as it is.
        beside: of what else is taken over, by name.
    """
    if params is None:
        return state

    def put(state: TrainState, encoder: PyTree) -> TrainState:
        params = state.params | (beside or {})
        params |= {"encoder": state.params["encoder"] | encoder}
        teacher = method.teacher_of(params, method.frozen_of(state.teacher))
        # A copy of each: steps give both back to the device, and what was loaded stays.
        copied = jax.tree.map(jnp.array, {"params": params, "teacher": teacher})
        return state.replace(**copied)

    sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(put, out_shardings=sharding)(state, params)
