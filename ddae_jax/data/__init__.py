"""Images in: where they come from, how they are augmented, and the batches a run sees.

`sources` reads images, `augment` crops and flips them, `pipeline` orders, batches and resumes.
Nothing here imports TensorFlow or any other part of `ddae_jax`.
"""
