"""The input pipeline: from files of images to the batches of training and evaluation.

In the order in which a batch comes about:

1. Files. ``splits`` finds the folder of a split (``folder_names`` reads what folders' names say),
   ``folder_scan`` the files in it and their classes, and ``image_files`` chooses those to read.
   ``files`` reads their bytes, with the retries of ``disks``.
2. Decoding. ``images`` decodes a file to 8 bits when it is needed, and names it if it is corrupt:
   ``opening`` reads headers (``metadata`` leaves out broken parts, ``header_sizes`` knows WebP),
   ``truncation`` tells a cut file from a damaged one. ``deep_colour`` and ``bit_depth`` are for
   values of more than 8 bits, ``tiff`` and ``tiff_segments`` for TIFF files that Pillow cannot
   read. ``array_images`` are images of other than 1 or 3 channels, from ``numpy_files`` or TIFF;
   ``channels`` resizes them. ``annotations`` decodes the class of every pixel.
3. Sources, which open examples by their index. ``source_base`` says what they are, ``sources``
   opens one by its kind: ``array_source``, ``folder_source`` or ``tfds_source``. ``segmentation``
   has those of images with annotations. ``labels`` makes sources of others by their labels.
4. Checks before a run: ``readable`` (can any example be decoded?), ``uniform_size`` (have all
   images one size?), ``pair_checks`` (do annotations fit their images?); ``pixel_statistics``
   computes mean and deviation.
5. Augmentation of one example: ``augment`` (crop and flip, on the host or on the device),
   ``rand_augment``, ``joint_augment`` (image and annotation alike). ``view`` is the crop of
   evaluation. ``batch_augment`` mixes whole batches, on the device.
6. Batches. ``train_loader`` shuffles, augments, batches and resumes; ``eval_batches`` and
   ``eval_pairs`` go through a source once; ``batches`` has what they share. ``threads`` and
   ``workers`` read, and ``background_iterator`` waits for them. ``warn_once`` is for all.

Nothing here imports TensorFlow, nor any part of ``ddae_jax`` but ``suggestions``.
"""
