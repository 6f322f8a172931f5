"""Bodies of the QuPath dialect, in every spelling that its clients and its README use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from segserve.models.catalog.architectures import canonical_architecture
from segserve.training.spec import (
    LARGEST_BATCH,
    MOST_CHANNELS,
    MOST_CLASSES,
    MOST_EPOCHS,
    ArchitectureChoice,
    Hyperparameters,
    InputConfig,
    Name,
    TrainingSpec,
)

KEYS = {"patience": "early_stopping_patience", "min_delta": "early_stopping_min_delta"}
VALUES: dict[str, dict[Any, str]] = {
    "scheduler": {"one_cycle": "onecycle", None: "none"},
    "loss_function": {"ce": "cross_entropy", "cross_entropy_loss": "cross_entropy"},
    "early_stopping_metric": {"loss": "val_loss"},
}


def _plain(block: object) -> object:
    """A block of hyperparameters in the core's spelling."""
    if not isinstance(block, Mapping):
        return block
    plain: dict[str, Any] = {}
    for key, value in block.items():
        # The long key wins where a client sends both.
        if key not in KEYS or KEYS[key] not in block:
            plain[KEYS.get(key, str(key))] = value
    for key, spellings in VALUES.items():
        value = plain.get(key)
        if key in plain and (value is None or isinstance(value, str)):
            plain[key] = spellings.get(value, value)
    return plain


def _without_nulls(value: object) -> object:
    """Nulls are absent keys."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


class _Architecture(ArchitectureChoice):
    type: str = ""


def _class_name(entry: object) -> object:
    """Classes may come as objects, as config.json has them."""
    return dict(entry).get("name") if isinstance(entry, Mapping) else entry


class TrainRequest(BaseModel):
    """The body of `POST /train`."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model_type: Name
    architecture: _Architecture = _Architecture()
    input_config: InputConfig
    training: Hyperparameters = Hyperparameters()
    classes: Annotated[
        list[Annotated[Name, BeforeValidator(_class_name)]], Field(min_length=2, max_length=MOST_CLASSES)
    ]
    data_path: Annotated[str, Field(min_length=1, max_length=4096)]

    @model_validator(mode="before")
    @classmethod
    def _merge_blocks(cls, body: object) -> object:
        """`training` wins over `training_params`, key by key."""
        if not isinstance(body, Mapping):
            return body
        blocks = [_plain(body[key]) for key in ("training_params", "training") if body.get(key) is not None]
        merged: dict[str, Any] = {}
        for block in blocks:
            if not isinstance(block, Mapping):
                return {**body, "training": block}  # refused where it belongs
            merged.update(block)
        return _without_nulls({**body, "training": merged})

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) < len(classes):
            raise ValueError("two classes have the same name")
        return classes

    def spec(self) -> TrainingSpec:
        """The request in the core's words.

        Raises:
            BadInputError: there is no such architecture.
        """
        kind = canonical_architecture(self.model_type)
        choice = ArchitectureChoice(**{**self.architecture.model_dump(), "type": kind})
        return TrainingSpec(
            architecture=choice,
            input_config=self.input_config,
            training=self.training,
            classes=self.classes,
            data_path=self.data_path,
        )


class ResumeRequest(BaseModel):
    """The body of `POST /train/{job_id}/resume`: what changes. `epochs` is the new total."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    data_path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] | None = None
    learning_rate: Annotated[FiniteFloat, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)] | None = None

    def applied_to(self, spec: TrainingSpec) -> TrainingSpec:
        """The training with the changes in it."""
        changes = self.model_dump(exclude_none=True, exclude={"data_path"})
        training = spec.training.model_copy(update=changes)
        return spec.model_copy(update={"training": training, "data_path": self.data_path or spec.data_path})


class LayersRequest(BaseModel):
    """The body of `POST /pretrained/layers`."""

    model_config = ConfigDict(extra="ignore")

    architecture: Name
    encoder: Name
    num_channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] = 3
    num_classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)] = 2
