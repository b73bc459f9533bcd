"""The task classification: what a fine-tuned network reaches on its test split."""

from absl import flags as absl_flags

from ddae_jax.builders import build
from ddae_jax.data.labels import validated, with_classes
from ddae_jax.data.readable import check_any_is_readable
from ddae_jax.evaluation.classification import score
from ddae_jax.evaluators.run_folder import draw, open_run, restore_labelled, where_the_data_is
from ddae_jax.figures.confusion import confusion_figure, worst_classes
from ddae_jax.finetune import build_task
from ddae_jax.hooks.classification import build_count, class_names, plain_scores
from ddae_jax.training.multihost import all_or_none

_NUM_SHOWN = 5


def classification(flags: absl_flags.FlagValues) -> tuple[str, dict]:
    """Top-1, top-5 and accuracy of each class, every image once."""
    with all_or_none():
        run = open_run(flags.workdir, "workdir", flags, job="finetune")
        split = flags.split or run.config.data.test_split
        source = where_the_data_is(build.build_source, run.config, split)
        build.warn_if_trained_on(run.config, split)
        names = run.workdir.read_classes()
        if names:
            what = f"the {split!r} split"
            source = with_classes(source, names, len(names), what=what, of="the network")
        source = validated(source)
        check_any_is_readable(source, f"the {split!r} split")
    config, mesh = run.config, run.mesh
    task = build_task(config, source.num_classes)
    variables, step = restore_labelled(run, task, flags.step)
    count = build_count(config, task, source.num_classes, mesh)
    batches = build.build_eval_batches(config, source, mesh, flags.limit or None)
    scores = score(count, variables, batches, mesh)
    names = class_names(source)
    figure = draw(run.workdir.figures / "confusion.png", confusion_figure, scores.confusion, names)
    result = {"task": "classification", "step": step, **plain_scores(scores, names)}
    result |= {"figure": figure}
    worst = worst_classes(scores.per_class, names)[:_NUM_SHOWN]
    lines = [
        f"{scores.num_images:,} images: top-1 {scores.top1:.2%}, top-5 {scores.top5:.2%}",
        f"hardest: {', '.join(f'{name} {accuracy:.1%}' for name, accuracy in worst)}",
        f"figure: {figure or 'none'}",
    ]
    return "\n".join(lines), result
