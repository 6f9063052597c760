"""AdamW on gradients that a method has changed, pair by pair."""

from torch import Tensor

from ..core import FactorGradients
from .pairs import Pair, PairOptimizer, has_gradients
from .stacks import Group, gradients, matrices


class PairAdamW(PairOptimizer):
    """Base class: a method's :meth:`_gradients` returns the gradients on which AdamW steps."""

    def _gradients(
        self, group: Group, A: Tensor, B: Tensor, g_A: Tensor, g_B: Tensor
    ) -> FactorGradients:
        """Return ĝ of A (k, r, n) and of B (k, m, r), for the k layers of a stack."""
        raise NotImplementedError

    def _step_pairs(self, group: Group, pairs: list[Pair]) -> None:
        for alike in self._alike(filter(has_gradients, pairs)):
            A, B = [pair.A for pair in alike], [pair.B for pair in alike]
            g_A, g_B = matrices(gradients(A)), matrices(gradients(B))
            changed = self._gradients(group, matrices(A), matrices(B), g_A, g_B)
            self._adamw(group, A, changed.A)
            self._adamw(group, B, changed.B)
