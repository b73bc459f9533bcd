"""Task segmentation: scores of a segmenter on its test split."""

from absl import flags as absl_flags

from ddae_jax.builders.data import class_names, warn_if_trained_on
from ddae_jax.builders.segmentation import (
    build_pairs,
    build_segment,
    build_segmentation_task,
    count_pixels,
)
from ddae_jax.evaluation.segmentation import class_iou, format_scores, scores_to_json
from ddae_jax.evaluators.run_folder import open_run, restore_labelled, with_data_dir_hint
from ddae_jax.training.multihost import all_or_none
from ddae_jax.training.sharding import local_replica


def segmentation(flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Measures mean IoU, the IoU of each class, and pixel accuracy.

    Predictions are averaged over the views of an image that ``--scales`` and ``--flip`` select.

    Args:
        flags: flags of the command.

    Returns:
        A text, and the scores as plain values.

    Raises:
        FileNotFoundError: if the folder holds no run, or a checkpoint or the data is not there.
        ValueError: if the run is not one of ddae_jax.segment.
    """
    with all_or_none():
        run = open_run(flags.workdir, "workdir", flags, job="segment")
        config = run.config
        if flags.scales:
            config.evaluation.scales = tuple(float(scale) for scale in flags.scales)
        if flags.flip:
            config.evaluation.flip = True
        split = flags.split or config.data.test_split
        source = with_data_dir_hint(build_pairs, config, split)
        warn_if_trained_on(config, split, within="images")
    task = build_segmentation_task(config)
    variables, step = restore_labelled(run, task, flags.step)
    segment = build_segment(config, task)
    confusion = count_pixels(config, segment, local_replica(variables), source, flags.limit or None)
    names = class_names(source, config.data.num_classes)
    result = {
        "task": "segmentation",
        "step": step,
        "scales": list(config.evaluation.scales),
        "flip": config.evaluation.flip,
        **scores_to_json(confusion, names),
    }
    width = max(map(len, names))
    lines = [format_scores(confusion)]
    lines += [
        f"  {name:{width}s}  {iou:6.2%}"
        for name, iou in zip(names, class_iou(confusion), strict=True)
        if iou == iou
    ]
    return "\n".join(lines), result
