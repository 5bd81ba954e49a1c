"""The parameters of how DeNLL's two networks interact: gates, agreement, and who answers (Eq. 6)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ml.blocks import mutual_learning


class InteractionParams(mutual_learning.AgreementParams):
    """How the two networks teach each other, and which of them predicts."""

    loss: Literal["each", "gated"] = Field(
        default="each",
        description="each: the base method's loss on each network's prediction, and cross-entropy on the gated ones; "
        "gated: Eq. 6 as printed, the base method's loss on the two gated predictions alone, at twice the passes.",
    )
    gates: Literal["detached", "joint", "off"] = Field(
        default="detached",
        description="Learned mixing of the two predictions. detached: only the gates learn from it; joint: the "
        "networks as well.",
    )
    agreement: Literal["off", "both", "one_way", "evidence"] = Field(  # type: ignore[assignment]  # one more value
        default="both",
        description="both: the two networks are pulled together, which repairs random wrong labels; one_way: the first "
        "learns from the second, for labels that are wrong systematically; evidence: both learn from images by the "
        "probability that their label speaks of the object, and not of the background (with localization: backbone).",
    )
    answer: Literal["mean", "g1", "g2", "evidence"] = Field(
        default="mean",
        description="Which prediction is the model's. evidence: of g2 if the labels follow the background, else of "
        "both, weighed by how they predict the given labels (with localization: backbone).",
    )

    @model_validator(mode="after")
    def _gated_predictions_train_the_networks(self) -> InteractionParams:
        if self.loss == "gated" and self.gates != "joint":
            raise ValueError("loss: gated needs gates: joint, through which the networks learn")
        return self

    @property
    def uses_evidence(self) -> bool:
        """Whether anything is decided by the evidence of `ml.features.evidence_state`."""
        return "evidence" in (self.agreement, self.answer)
