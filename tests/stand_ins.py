"""Parameters, tokenizers and teachers that nobody has trained, in the place of those that have."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ddae_jax.builders import methods
from ddae_jax.builders.networks import build_encoder, build_tokenizer
from ddae_jax.methods.vqkd import DistilledTeacher, TrainedTokenizer


def parameters(init: Callable[[], PyTree], seed: int = 0) -> PyTree:
    """As many as ``init`` makes, but drawn by NumPy: nothing has to be compiled for that.

    Scales are near 1 and all others near 0; none is where it would start.
    """
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        centre = float(path[-1] == jax.tree_util.DictKey("scale"))
        return rng.normal(centre, 0.1, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init))


def load_tokenizer(path, config, num_codes=None):
    """One with the config's own encoder."""
    codes = (num_codes or config.tokenizer.num_codes, config.tokenizer.code_width)
    module = build_tokenizer(config, teacher_width=1)

    def frozen():
        images = jnp.zeros((1, *module.encoder.image_size, config.data.channels))
        params = module.init(jax.random.key(1), images)["params"]
        return {"params": params, "codes": jnp.zeros(codes)}

    return TrainedTokenizer(module, drawn(frozen, config))


def load_teacher(path, config, **_):
    """One that is as the config's own encoder."""
    module = build_encoder(config)
    images = jnp.zeros((1, *module.image_size, config.data.channels))
    init = lambda: module.init(jax.random.key(1), images)["params"]  # noqa: E731
    return DistilledTeacher(module, drawn(init, config))


def drawn(init, config):
    """Arrays, or of large models their shapes alone."""
    is_large = config.model.size in ("B", "L")
    return jax.eval_shape(init) if is_large else parameters(init, seed=1)


def put_in_place(monkeypatch, **options):
    """Lets configs find these."""
    monkeypatch.setattr(
        methods,
        "load_tokenizer",
        lambda path, config, **_: load_tokenizer(path, config, **options),
    )
    monkeypatch.setattr(methods, "load_teacher", load_teacher)
