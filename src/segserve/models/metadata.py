"""What a model file says of itself. Nothing in it is refused: what cannot be understood is a warning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from segserve.errors import BadInputError
from segserve.models.request import InferenceConfig, Labels, Number, Orientation, Share, Width, parse

JSON_KEYS = ("inference_config", "labels")
NUMBER_KEYS = ("window_level", "window_width", "binary_segment_threshold")
LONGEST = 2**20  # characters; the answer to a load carries the labels


class Fields(BaseModel):
    """The metadata keys that Segserve knows, parsed."""

    model_config = ConfigDict(extra="ignore", strict=True)

    window_level: Number | None = None
    window_width: Width | None = None
    orientation: Orientation | None = None
    labels: Labels | None = None
    activation: Literal["none", "sigmoid"] | None = None
    binary_segment_threshold: Share | None = None
    output: Annotated[str, Field(max_length=1000)] | None = None


KNOWN = {"inference_config", *Fields.model_fields}


@dataclass(frozen=True)
class ModelMetadata:
    """A model's own settings and the warnings about those that made no sense."""

    fields: Fields = field(default_factory=Fields)
    config: InferenceConfig = field(default_factory=InferenceConfig)
    warnings: list[str] = field(default_factory=list)


def read_metadata(texts: Mapping[str, str]) -> ModelMetadata:
    """Understand a model's metadata, a mapping of texts as ONNX keeps them."""
    warnings: list[str] = []
    values = {key: _decode(key, text, warnings) for key, text in texts.items() if key in KNOWN}
    sent = values.pop("inference_config", None)
    config = sent if isinstance(sent, dict) else {}
    if sent is not None and not isinstance(sent, dict):
        warnings.append("The model's metadata inference_config is not a JSON object and was ignored.")
    return ModelMetadata(_lenient(Fields, values, warnings), _lenient(InferenceConfig, config, warnings), warnings)


def _decode(key: str, text: str, warnings: list[str]) -> Any:  # noqa: ANN401  # JSON
    try:
        if key in JSON_KEYS:
            value = json.loads(text if len(text) <= LONGEST else "")
            json.dumps(value, ensure_ascii=False).encode()  # half a character, which JSON can spell, cannot be sent on
            return value
        return float(text) if key in NUMBER_KEYS else text[:LONGEST]
    except (ValueError, RecursionError):
        warnings.append(f"The model's metadata {key} = {text[:60]!r} cannot be read and was ignored.")
        return None


def _lenient(model: Any, values: Mapping[str, Any], warnings: list[str]) -> Any:  # noqa: ANN401  # one type in, the same out
    """Keep the keys that parse; warn of the others."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        try:
            kept.update(parse(model, {key: value}, "the model's metadata").model_dump(exclude_none=True))
        except BadInputError as error:
            warnings.append(f"In the model's metadata, ignored: {error.message}")
    return model(**kept)
