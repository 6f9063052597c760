"""Image classifiers, among them one on scikit-learn's digits, turned, inverted or relabelled."""

from dataclasses import replace
from functools import cached_property

from torch import Tensor, nn

from ...app.bench import digits
from ...app.config.spec import EvalSpec
from ...app.errors import UserError
from ...app.evaluation.inference import class_figures
from ...app.models.base_models import ImageClassifier
from ...app.run import modality
from .spec import CompareSpec
from .workload import Workload


class VisionWorkload(Workload):
    """An image classifier and its data, from the sections of a recipe as in ``sdslora train``.

    The general loss is defined for ``data.source: digits`` only: the loss on the unchanged digits.

    Raises:
        UserError: for data that cannot work, and sections that are for language models.
    """

    def __init__(self, spec: CompareSpec, source: ImageClassifier) -> None:
        if spec.tasks.names is not None or spec.forgetting.source is not None:
            raise UserError("tasks.names and forgetting.source are for language models")
        # the digits are tensors already
        processor = None if spec.data.source == digits.SOURCE else source.processor()
        super().__init__(spec, modality.make(source, processor, spec.data, test=spec.test))

    @property
    def evaluation(self) -> EvalSpec:
        """The evaluation section for all images; ``limit`` is for generated text only."""
        return replace(self.spec.evaluation, limit=None)

    def general_loss(self, model: nn.Module) -> float | None:
        """Return the loss on the unchanged test digits."""
        if self.spec.data.source != digits.SOURCE:
            return super().general_loss(model)
        return class_figures(model, [self._upright])["loss"]

    @cached_property
    def _upright(self) -> dict[str, Tensor]:
        test = digits.load().test
        return {"pixel_values": test.pixels, "labels": test.labels}
