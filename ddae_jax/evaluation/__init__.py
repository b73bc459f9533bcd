"""Evaluation: numbers that measure the quality of encoders, classifiers and segmenters.

Frozen features:

* ``features``: extraction over all devices, raw pixels as a baseline, and a cache on disk.
* ``labelled_images``: a training and a test set, from which features and accuracies come.
* ``knn``, ``linear_probe``, ``few_shot``: classifiers of features.
* ``embeddings``: features of any images, written to a file.
* ``collapse``: effective rank and other signs of collapsed features.

Networks as a whole:

* ``attention_distance``: how far attention reaches.
* ``classification``: confusion matrix and accuracies of a classifier.
* ``segmentation``: IoU and accuracies of a segmenter, and inference on images of any size.

Everything takes arrays, callables and a mesh; ``ddae_jax.evaluators`` builds these from a run, and
``ddae_jax.figures`` draws the results.
"""
