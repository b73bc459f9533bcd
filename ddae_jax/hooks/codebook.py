"""The codebook of a tokenizer that is trained: a warning if it collapses."""

import logging
import math
from collections.abc import Mapping

from ddae_jax.training.hooks import Hook

_log = logging.getLogger(__name__)


class CodebookWarning(Hook):
    """A warning of a codebook that has collapsed: few of its codes are used, and it stays so.

    Args:
        least: perplexity below which it has; 0 for no warnings.
        patience: records in a row.
    """

    def __init__(self, least: float, patience: int = 5):
        self._least = least
        self._patience = patience
        self._num_below = 0

    def on_record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes a record; warns at every ``patience`` -th one in a row that is below."""
        found = metrics.get("codebook/perplexity", math.inf)
        self._num_below = self._num_below + 1 if found < self._least else 0
        if self._num_below and self._num_below % self._patience == 0:
            _log.warning(
                "step %d: the codebook has COLLAPSED: its perplexity is %.1f, below %g (its size "
                "times tokenizer.min_perplexity_share), for %d records in a row. Its tokens say "
                "little. A "
                "lower optimizer.learning_rate, a smaller tokenizer.code_width, a larger "
                "batch_size or a higher tokenizer.revive_below usually helps",
                step,
                found,
                self._least,
                self._num_below,
            )
