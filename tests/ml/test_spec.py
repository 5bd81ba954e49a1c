"""The training spec: strict, bounded, and cheap to import."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ml.data import ingest
from ml.training.spec import IMAGE_SIZES, LATER_FIELDS, TrainingSpec, seed_for


def test_parsing_needs_no_torch() -> None:
    script = "import sys, ml.training.spec, ml.errors; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=250).returncode == 0


def test_every_field_says_what_it_is_and_numbers_are_bounded() -> None:
    schema = TrainingSpec.model_json_schema()
    for properties in (schema["properties"], schema["$defs"]["NoiseSpec"]["properties"]):
        for name, field in properties.items():
            assert field.get("description"), name
            if field.get("type") in {"integer", "number"}:
                assert {"minimum", "exclusiveMinimum"} & set(field), name
                assert {"maximum", "exclusiveMaximum"} & set(field), name


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"learning_rate": float("nan")}, {"learning_rate": float("inf")}, {"batch_size": 1},
        {"unknown": 1}, {"seed": 2**32}, {"noise": {"kind": "symmetric", "rate": 1.0}}, {"noise": {"kind": "odd"}},
        {"validation_fraction": -0.1}, {"device": "tpu"}, {"noise": {"kind": "pairflip"}},
        {"noise": {"kind": "transition", "rate": 0.1}}, {"noise": {"kind": "transition"}},
        {"noise": {"kind": "pairflip", "rate": 0.1, "matrix": [[1, 0], [0, 1]]}},
        {"noise": {"kind": "transition", "rate": 0.1, "matrix": [[1, 0], [0, 1]]}},
        {"noise": {"kind": "transition", "matrix": [[1, 0]]}},
        {"noise": {"kind": "transition", "matrix": [[1, 0], [0.5, 0.4]]}},
        {"noise": {"kind": "transition", "matrix": [[1.5, -0.5], [0, 1]]}},
        {"noise": {"kind": "transition", "matrix": [[1, 0], [1]]}},
    ],
)  # fmt: skip
def test_values_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingSpec.model_validate(wrong)


def test_a_transition_matrix_may_be_rounded() -> None:
    result = TrainingSpec.model_validate({"noise": {"kind": "transition", "matrix": [[0.3333] * 3] * 3}})

    assert TrainingSpec.model_validate_json(result.model_dump_json()) == result


def test_image_sizes_ascend_within_the_bounds_and_begin_with_those_of_ingest() -> None:
    for size in IMAGE_SIZES:
        TrainingSpec(image_size=size)

    assert list(IMAGE_SIZES) == sorted(set(IMAGE_SIZES))
    assert IMAGE_SIZES[: len(ingest.BUCKETS)] == ingest.BUCKETS
    assert all(str(size) in (TrainingSpec.model_fields["image_size"].description or "") for size in IMAGE_SIZES)


def test_a_later_field_at_its_default_keeps_the_digest_of_earlier_checkpoints() -> None:
    spec = TrainingSpec(method="ce", seed=3)
    earlier = spec.model_dump_json(exclude=set(LATER_FIELDS))

    assert spec.digest() == hashlib.sha256(earlier.encode()).hexdigest()
    assert len({spec.digest(), *(TrainingSpec(method="ce", seed=3, **{name: 0.5}).digest() for name in
                                 ("layer_decay", "crop_scale", "color_jitter", "mixup"))}) == 5  # fmt: skip


def test_the_digest_follows_every_field() -> None:
    digests = {TrainingSpec(**change).digest() for change in ({}, {"seed": 1}, {"params": {"a": 1}}, {"epochs": 31})}

    assert len(digests) == 4
    assert TrainingSpec().digest() == TrainingSpec.model_validate_json(TrainingSpec().model_dump_json()).digest()


@given(st.integers(0, 2**32 - 1))
def test_concerns_have_seeds_of_their_own(seed: int) -> None:
    seeds = [seed_for(seed, concern) for concern in ("order", "augmentation", "noise")]

    assert len(set(seeds)) == 3
    assert all(0 <= member < 2**63 for member in seeds)
