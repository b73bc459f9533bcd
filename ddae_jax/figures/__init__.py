"""Figures: everything that is drawn of a run, as PNG files, and the HTML report that shows them.

* ``metrics``: the course of a run (losses, betas, schedules, accuracies, collapse, codebook).
* ``predictions``, ``images``: what a model sees and predicts, and the image arrays for it.
* ``segmentation``: true and predicted classes of pixels.
* ``confusion``, ``depths``, ``attention_distance``: results of single evaluations.
* ``report``: one HTML page for the whole run.
* ``style``: fonts, colours, and writing of files, for all of these.

Functions take NumPy arrays or logged records, and write one file. Only NumPy, matplotlib and (for
the report) Jinja are used.
"""
