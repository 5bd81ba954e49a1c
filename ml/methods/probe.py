"""A linear probe: the network stays as it is, and its classifier is solved for instead of trained.

Multinomial logistic regression on the network's features (`ml.features.linear_probe`), whose penalty is chosen by the
likelihood of given labels out of fold. On the features of a pretrained network it takes seconds. All work is done when
the first epoch begins; no later epoch changes anything. Without pretrained weights it probes random features.

Labels are ranked by logits of classifiers that did not learn from the image, as confident learning asks for.

Shapes: `M` images trained on, `D` features, `C` classes.
"""

from __future__ import annotations

from torch import Tensor

from ml.features import cross_validation, fixed_features, linear_probe
from ml.method import TrainContext
from ml.methods import About

ABOUT: About = {
    "title": "Linear probe",
    "paper": "Alain, Bengio: Understanding Intermediate Layers Using Linear Classifier Probes (2016)",
    "idea": "Only the last layer learns, on features that a pretrained network has computed once for every image. That "
    "takes seconds, and so few weights fit few of the wrong labels.",
    "relative_cost": 0.1,
    "needs": [],
    "presets": {"default": {}, "photographs": {}},
    "training": {"photographs": {"tune": "none", "epochs": 1}},
}


class Params(fixed_features.FixedFeaturesParams):
    """Parameters of the probe."""


class Method(fixed_features.FixedFeaturesMethod[Params]):
    """Logistic regression on fixed features."""

    def solve(self, features: Tensor, context: TrainContext) -> Tensor:
        """See `fixed_features.FixedFeaturesMethod.solve`."""
        classes, generator = self.network.class_count, context.generator("folds")
        projection = linear_probe.fit_projection(features, self.params.components)
        projected = projection(features)
        result = cross_validation.cross_validate(
            projected, self.labels, classes, cross_validation.PLAIN, generator, self.params.folds
        )
        scale = result.estimate.scale
        classifier = result.candidate.fit(projected, self.labels, classes).scaled(scale)
        linear_probe.fold_into(self.classifier, projection, classifier)
        return scale * result.logits
