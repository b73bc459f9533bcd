"""Evaluates a run: its frozen features, its attention, or what a fine-tuned network reaches.

    python -m ddae_jax.evaluate --workdir=runs/digits --task=knn
    python -m ddae_jax.evaluate --workdir=runs/digits --task=linear \\
        --encoder=teacher --depth=4
    python -m ddae_jax.evaluate --workdir=runs/ddae --task=attention_distance \\
        --compare=runs/mae
    python -m ddae_jax.evaluate --workdir=runs/finetuned --task=classification

Everything but the workdir is known from its config and checkpoints. The last line printed is one
JSON object. Tasks for runs of ddae_jax.pretrain:

    knn, linear         accuracy on features, of the untrained network, and of
                        raw pixels
    few_shot            accuracy of a linear probe on 1 and on 10 labelled
                        images of each class
    depths              knn and linear after every block, with a figure
    attention_distance  how far each head reaches, with a figure
    embed               the features themselves, with names and labels, to a file

Of ddae_jax.finetune: classification, its accuracy on the test split, with a figure. Of
ddae_jax.segment: segmentation, its mean IoU. Figures go to WORKDIR/figures/.
"""

from ddae_jax.jobs.commands import answer_help, define_evaluate, usage

if __name__ == "__main__":
    answer_help("evaluate", __doc__)  # before the imports below, which take seconds

import json
from collections.abc import Sequence

import jax

from ddae_jax.evaluators import check_options, run_task
from ddae_jax.jobs import cli, devices, exits
from ddae_jax.suggestions import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with exits.explain_bad_input():
        flags = cli.parse_flags(argv, usage("evaluate", __doc__), define_evaluate)
        check_options(flags)
        devices.start_devices(flags.distributed)
        table, result = run_task(flags)
    if jax.process_index() == 0:
        print(printable(table))
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    exits.run(main)
