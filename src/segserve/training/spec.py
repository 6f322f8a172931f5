"""What a training is asked to do, in the core's own words, whichever spelling the client used.

Free of torch: the HTTP process makes it, the job's record keeps it, the training process obeys it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

UNLABELLED = 255  # in masks, whatever number the data set used
MOST_CLASSES = UNLABELLED
MOST_CHANNELS = 4096
MOST_EPOCHS = 100_000
LARGEST_BATCH = 4096
SEED_LIMIT = 2**63 - 1

Name = Annotated[str, Field(min_length=1, max_length=200)]
Positive = Annotated[FiniteFloat, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ArchitectureChoice(_Part):
    """The network; `input_size` is (height, width) in pixels and matters to readers of the metadata only."""

    type: str
    backbone: Name = "resnet34"
    input_size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (512, 512)
    downsample: Positive = 1.0
    use_pretrained: bool = True
    frozen_layers: list[str] = []
    context_scale: Annotated[int, Field(ge=1, le=64)] = 1


class NormalizationSpec(_Part):
    """How pixels become numbers near 0 to 1; `min` and `max` are the fixed range's, in pixel values."""

    strategy: Literal["min_max", "percentile_99", "z_score", "fixed_range"] = "percentile_99"
    per_channel: bool = True
    clip_percentile: Annotated[FiniteFloat, Field(gt=50, le=100)] = 99.0
    min: FiniteFloat | None = None
    max: FiniteFloat | None = None

    @model_validator(mode="after")
    def _ordered(self) -> NormalizationSpec:
        low = 0.0 if self.min is None else self.min
        high = 255.0 if self.max is None else self.max
        if self.strategy == "fixed_range" and low >= high:
            raise ValueError(f"min must be below max (got {low:g} and {high:g})")
        return self


class InputConfig(_Part):
    """The images; `num_channels` counts detail channels, without those of the context."""

    num_channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
    channel_names: list[str] = []
    bit_depth: Annotated[int, Field(ge=1, le=64)] = 8
    normalization: NormalizationSpec = NormalizationSpec()


class Hyperparameters(_Part):
    """How to train. `early_stopping_min_delta` is in the metric's own unit; `gradient_clip` is a norm, 0 for none."""

    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = 50
    batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = 8
    learning_rate: Positive = 0.001
    weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 0.0001
    validation_split: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.2
    augmentation: bool = True
    scheduler: Literal["none", "cosine", "step", "onecycle"] = "onecycle"
    loss_function: Literal["ce_dice", "cross_entropy"] = "ce_dice"
    early_stopping: bool = True
    early_stopping_patience: Annotated[int, Field(ge=1)] = 15
    early_stopping_metric: Literal["mean_iou", "val_loss"] = "mean_iou"
    early_stopping_min_delta: Annotated[FiniteFloat, Field(ge=0)] = 0.001
    mixed_precision: bool = True
    optimizer: Literal["adam", "adamw"] = "adamw"
    gradient_clip: Annotated[FiniteFloat, Field(ge=0)] = 1.0
    seed: Annotated[int, Field(ge=0, le=SEED_LIMIT)] = 0


class TrainingSpec(_Part):
    """One training. `data_path` is a folder as the client named it."""

    architecture: ArchitectureChoice
    input_config: InputConfig
    training: Hyperparameters
    classes: Annotated[list[Name], Field(min_length=2, max_length=MOST_CLASSES)]
    data_path: Annotated[str, Field(min_length=1, max_length=4096)]

    @property
    def network_channels(self) -> int:
        """Channels the network sees: detail, and as many of the context where there is one."""
        return self.input_config.num_channels * (2 if self.architecture.context_scale > 1 else 1)
