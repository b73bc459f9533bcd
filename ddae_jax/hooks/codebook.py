"""Hook that warns if the codebook of a tokenizer in training collapses."""

import logging
import math
from collections.abc import Mapping

from ddae_jax.training.hooks import Hook

_log = logging.getLogger(__name__)


class CodebookWarning(Hook):
    """Hook that warns if few codes of the codebook are used, for several records in a row.

    Args:
        least: perplexity below which the codebook counts as collapsed; 0 for no warnings.
        patience: records in a row after which it warns.
    """

    def __init__(self, least: float, patience: int = 5):
        self._least = least
        self._patience = patience
        self._num_below = 0

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Counts records below the threshold; warns at every ``patience``-th one in a row."""
        perplexity = metrics.get("codebook/perplexity", math.inf)
        self._num_below = self._num_below + 1 if perplexity < self._least else 0
        if self._num_below and self._num_below % self._patience == 0:
            _log.warning(
                "step %d: the codebook has COLLAPSED: its perplexity is %.1f, below %g (its size "
                "times tokenizer.min_perplexity_share), for %d records in a row. Its tokens say "
                "little. A "
                "lower optimizer.learning_rate, a smaller tokenizer.code_width, a larger "
                "batch_size or a higher tokenizer.revive_below usually helps",
                step,
                perplexity,
                self._least,
                self._num_below,
            )
