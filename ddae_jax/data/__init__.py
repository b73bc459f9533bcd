"""Images in: where they come from, how they are augmented, and the batches a run sees.

`sources` finds images (`folder`: in a tree of files), `images` decodes them, `augment` crops and
flips them, `pipeline` orders, batches and resumes. With the class of every pixel: `segmentation`
finds pairs of image and annotation, `annotations` decodes these, `joint_augment` augments both
alike, `whole_pairs` checks and evaluates them.
Nothing here imports TensorFlow or any other part of `ddae_jax` but `disks`.
"""
