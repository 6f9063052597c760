"""Image classifiers, among them one on scikit-learn's digits, turned, inverted or relabelled."""

from dataclasses import replace
from functools import cached_property

from torch import Tensor, nn

from ...app.bench import digits
from ...app.config.spec import EvalSpec
from ...app.errors import UserError
from ...app.evaluation.inference import classified
from ...app.models.base_models import ImageClassifier
from ...app.run import modality
from .spec import CompareSpec
from .workload import Workload


class VisionWorkload(Workload):
    """The model and data sections of a recipe, as in ``sdslora train``.

    What the model could do before is known of ``data.source: digits``: to classify the digits as
    they are.

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
        """Of all images, whatever ``evaluation.limit`` says: nothing is generated."""
        return replace(self.spec.evaluation, limit=None)

    def general_loss(self, model: nn.Module) -> float | None:
        """Loss on the test digits as they are."""
        if self.spec.data.source != digits.SOURCE:
            return super().general_loss(model)
        return classified(model, [self._upright])["loss"]

    @cached_property
    def _upright(self) -> dict[str, Tensor]:
        test = digits.load().test
        return {"pixel_values": test.pixels, "labels": test.labels}
