"""Whether the settings of a training agree with each other and with the method, which a schema cannot express."""

from __future__ import annotations

from ml import errors, methods
from ml.formats import spec_rules
from ml.training.spec import TrainingSpec


def check(spec: TrainingSpec) -> None:
    """Raise ContradictorySpec if two settings exclude each other, or UnknownName if there is no such method."""
    module = methods.load(spec.method)
    params = module.Params.model_validate(spec.params).model_dump(mode="json", by_alias=True)
    wrong = spec_rules.find_contradictions(
        {**spec.model_dump(mode="json"), "params": params},
        module.ABOUT.get("frozen_backbone", {}),
        mixes=methods.mixes(spec.method, params),
    )
    if wrong:
        raise errors.ContradictorySpec(f"{wrong[0].field}: {wrong[0].detail}")
