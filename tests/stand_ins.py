"""Tokenizers and teachers that nobody has trained, in the place of those that configs name."""

import jax
import jax.numpy as jnp

from ddae_jax import build
from ddae_jax.methods.vqkd import DistilledTeacher, TrainedTokenizer
from ddae_jax.networks import build_encoder, build_tokenizer


def load_tokenizer(path, config, num_codes=None):
    """One with the config's own encoder."""
    codes = (num_codes or config.tokenizer.num_codes, config.tokenizer.code_width)
    module = build_tokenizer(config, teacher_width=1)

    def frozen(key):
        images = jnp.zeros((1, *module.encoder.image_size, config.data.channels))
        params = module.init(key, images)["params"]
        return {"params": params, "codes": jax.random.normal(key, codes)}

    return TrainedTokenizer(module, drawn(frozen, config))


def load_teacher(path, config):
    """One that is as the config's own encoder."""
    module = build_encoder(config)
    images = jnp.zeros((1, *module.image_size, config.data.channels))
    return DistilledTeacher(module, drawn(lambda key: module.init(key, images)["params"], config))


def drawn(init, config):
    """Arrays, or of large models their shapes alone."""
    key = jax.random.key(1)
    is_large = config.model.size in ("B", "L")
    return jax.eval_shape(init, key) if is_large else jax.jit(init)(key)


def put_in_place(monkeypatch, **options):
    """Lets configs find these."""
    monkeypatch.setattr(
        build, "load_tokenizer", lambda path, config: load_tokenizer(path, config, **options)
    )
    monkeypatch.setattr(build, "load_teacher", load_teacher)
