"""The specification of a method: all that the rest of the package knows about it."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

Keys = Mapping[str, Any]
"""Values of a config by dotted key, such as ``{"mask.ratio": 0.75}``."""

RELATIVE_POSITIONS: Keys = MappingProxyType(
    {
        "model.positions": "none",
        "model.relative_positions": "shared",
        "model.layer_scale": 0.1,
        "model.has_key_bias": False,
    }
)
"""The architecture that BEiT and SimMIM share, as part of their recipes."""

DECAYED_BY_BEIT = "mask_token,relative_positions"
"""Parameters, besides kernels, to which the authors' code of BEiT, BEiT v2 and SimMIM applies
weight decay.

All three decay parameters of more than one axis, such as mask tokens, except the class token and
positions.
"""

_TRAINED_NETWORKS = {"tokenizer": "targets.tokenizer", "teacher": "tokenizer.teacher"}


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """A named method, with its builder, its published settings and its requirements.

    Attributes:
        name: the value of ``config.method``.
        summary: one line for ``--help``, naming what is predicted, and from what.
        build: ``(encoder, decoder, *, OPTION..., **options)`` to a
            :class:`ddae_jax.methods.task.TrainTask`. Its keyword-only parameters
            are the method's own options: each is given the config's value of that name (see
            :mod:`ddae_jax.builders.methods`). A method that hides patches passes ``options``,
            masking and supervision, on to :func:`ddae_jax.methods.make_method.make_method`.
        papers: the papers to cite, as Markdown.
        recipe: values of config keys, beyond the defaults, that make it the published method.
        kind: ``masked`` for a method that predicts hidden patches under a supervision,
            ``tokenizer`` for one that trains a tokenizer for others.
        encoder_input: the only ``model.encoder_input`` that it supports; None for any.
        needs_class_token: whether the encoder must have a class token.
        check: raises ``ValueError`` for config values that this method cannot have.
    """

    name: str
    summary: str
    build: Callable[..., Any]
    papers: tuple[str, ...]
    recipe: Keys = dataclasses.field(default_factory=dict)
    kind: Literal["masked", "tokenizer"] = "masked"
    encoder_input: Literal["visible", "full"] | None = None
    needs_class_token: bool = False
    check: Callable[[Keys], None] = lambda keys: None

    @property
    def options(self) -> frozenset[str]:
        """The names of the method's own options, such as ``feature_weight``."""
        parameters = inspect.signature(self.build).parameters.values()
        return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    @property
    def trained_network_key(self) -> str | None:
        """The config key of the trained network that the method needs; None if it needs none."""
        keys = (key for option, key in _TRAINED_NETWORKS.items() if option in self.options)
        return next(keys, None)

    def check_needs(self, keys: Keys) -> None:
        """Raises ``ValueError`` for config values that do not go with this method."""
        if self.encoder_input not in (None, keys["model.encoder_input"]):
            patches = "all patches" if self.encoder_input == "full" else "visible patches alone"
            raise ValueError(
                f"method={self.name!r} encodes {patches}; set model.encoder_input="
                f"{self.encoder_input!r}"
            )
        if self.needs_class_token and not keys["model.use_class_token"]:
            raise ValueError(
                f"method={self.name!r} aggregates in the class token: set "
                "model.use_class_token=True"
            )
        self.check(keys)
