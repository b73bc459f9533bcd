"""Task classification: scores of a fine-tuned network on its test split."""

from absl import flags as absl_flags

from ddae_jax.builders.classification import build_classification_task, build_count
from ddae_jax.builders.data import build_eval_batches, build_source, class_names, warn_if_trained_on
from ddae_jax.data.labels import validated, with_classes
from ddae_jax.data.readable import check_any_is_readable
from ddae_jax.evaluation.classification import score, scores_to_json
from ddae_jax.evaluators.run_folder import draw, open_run, restore_labelled, with_data_dir_hint
from ddae_jax.figures.confusion import confusion_figure, worst_classes
from ddae_jax.training.multihost import all_or_none

_NUM_HARDEST = 5  # classes of lowest accuracy that are listed


def classification(flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Measures top-1 and top-5 accuracy, and the accuracy of each class.

    Args:
        flags: flags of the command.

    Returns:
        A text, and the scores as plain values.

    Raises:
        FileNotFoundError: if the folder holds no run, or a checkpoint or the data is not there.
        ValueError: if the run is not one of ddae_jax.finetune, or its classes differ.
        NothingReadable: if no labelled image can be read.
    """
    with all_or_none():
        run = open_run(flags.workdir, "workdir", flags, job="finetune")
        split = flags.split or run.config.data.test_split
        source = with_data_dir_hint(build_source, run.config, split)
        warn_if_trained_on(run.config, split)
        names = run.workdir.read_classes()
        if names:
            what = f"the {split!r} split"
            source = with_classes(source, names, len(names), what=what, of="the network")
        source = validated(source)
        check_any_is_readable(source, f"the {split!r} split")
    config, mesh = run.config, run.mesh
    task = build_classification_task(config, source.num_classes)
    variables, step = restore_labelled(run, task, flags.step)
    count = build_count(config, task, source.num_classes, mesh)
    batches = build_eval_batches(config, source, mesh, flags.limit or None)
    scores = score(count, variables, batches, mesh)
    names = class_names(source, source.num_classes)
    figure = draw(run.workdir.figures / "confusion.png", confusion_figure, scores.confusion, names)
    result = {"task": "classification", "step": step, **scores_to_json(scores, names)}
    result |= {"figure": figure}
    worst = worst_classes(scores.per_class, names)[:_NUM_HARDEST]
    lines = [
        f"{scores.num_images:,} images: top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%}",
        f"hardest: {', '.join(f'{name} {accuracy:.1%}' for name, accuracy in worst)}",
        f"figure: {figure or 'none'}",
    ]
    return "\n".join(lines), result
