"""Networks in Flax linen, without training or data.

From the top down:

- :mod:`ddae_jax.models.vit`: the vision transformer, which reads out features at chosen depths.
- :mod:`ddae_jax.models.decoder`: the light decoder, which fills hidden patches in.
- :mod:`ddae_jax.models.classifier`, :mod:`ddae_jax.models.upernet`: the networks of fine-tuning and
  of segmentation, on top of a vision transformer.
- :mod:`ddae_jax.models.tokenizer`, :mod:`ddae_jax.models.codebook`: the VQ-KD tokenizer and its
  codes.
- :mod:`ddae_jax.models.transformer`: the block that encoder and decoder are stacks of, made of
  :mod:`ddae_jax.models.attention` and :mod:`ddae_jax.models.dense`.
- :mod:`ddae_jax.models.positions`, :mod:`ddae_jax.models.resize`: position embeddings, and their
  adaptation to another grid of patches.
- :mod:`ddae_jax.models.gather`, :mod:`ddae_jax.models.backend`: the choice of patches, and the
  platform that layers choose their form for.
- :mod:`ddae_jax.models.weight_decay`: which parameters weight decay applies to.
"""
