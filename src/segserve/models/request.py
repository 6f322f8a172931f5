"""What a client may ask for when it loads a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from segserve.errors import BadInputError
from segserve.logs import CONTROL
from segserve.models.told import told

Axes = tuple[int, int, int]
AXIS_PAIRS = ("LR", "PA", "IS")
NATIVE = "native"
LARGEST = 2**31 - 1
LONGEST_SHOWN = 80
Model = TypeVar("Model", bound="BaseModel")


def _shown(value: object) -> str:
    """A value as an error repeats it: not whole where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _axes(value: object) -> object:
    """One integer is a cube; `[96, 96, 96]` is (Z, Y, X)."""
    sizes = value if isinstance(value, (list, tuple)) else [value] * 3
    whole = [_whole(size) for size in sizes]
    if len(whole) != 3 or any(size is None or size < 1 for size in whole):
        raise ValueError(f"must be three integers of at least 1 (Z, Y, X) or one integer, not {_shown(value)}")
    return tuple(whole)


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST:
        return None
    return value


def _count(value: object) -> object:
    whole = _whole(value)
    if whole is None or whole < 1:
        raise ValueError(f"must be an integer of at least 1, not {_shown(value)}")
    return whole


def _number(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST:  # NaN is not below it
        return float(value)
    raise ValueError(f"must be a finite number, not {_shown(value)}")


def _positive(value: object) -> object:
    if isinstance(number := _number(value), float) and number > 0:
        return number
    raise ValueError(f"must be above 0, not {_shown(value)}")


def _share(value: object) -> object:
    if isinstance(number := _number(value), float) and 0 < number < 1:
        return number
    raise ValueError(f"must be between 0 and 1, not {_shown(value)}")


def _device(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"cpu|mps|cuda(:\d{1,2})?", value):
        return value
    raise ValueError(f"must be 'cpu', 'cuda', 'cuda:0' or 'mps', not {_shown(value)}")


def _orientation(value: object) -> object:
    if value == NATIVE or (isinstance(value, str) and is_orientation(value.upper())):
        return NATIVE if value == NATIVE else str(value).upper()
    raise ValueError(
        f"must be 'native' or three letters, one each of L/R, P/A and I/S, such as 'LPI', not {_shown(value)}"
    )


def is_orientation(letters: str) -> bool:
    """True for three letters that name each body axis once, as `LPI`."""
    return len(letters) == 3 and all(sum(letter in pair for letter in letters) == 1 for pair in AXIS_PAIRS)


def _labels(value: object) -> object:
    """Label names by value: a list, or an object such as `{"1": "liver"}`."""
    named = dict(enumerate(value)) if isinstance(value, list) else value
    if isinstance(named, Mapping) and all(str(k).isdigit() and isinstance(v, str) for k, v in named.items()):
        return {str(int(key)): name for key, name in named.items()}
    raise ValueError('must be a list of names, or an object such as {"1": "liver"}')


def _name(value: object) -> object:
    if isinstance(value, str) and CONTROL.search(value):
        raise ValueError(f"must have no line breaks or other control characters, unlike {_shown(value)}")
    return value


Name = Annotated[str, BeforeValidator(_name)]
Patch = Annotated[Axes, BeforeValidator(_axes)]
Count = Annotated[int, BeforeValidator(_count)]
Number = Annotated[float, BeforeValidator(_number)]
Width = Annotated[float, BeforeValidator(_positive)]
Share = Annotated[float, BeforeValidator(_share)]
Device = Annotated[str, BeforeValidator(_device)]
Orientation = Annotated[str, BeforeValidator(_orientation)]
Labels = Annotated[dict[str, str], BeforeValidator(_labels)]


class InferenceConfig(BaseModel):
    """The `inference_config` of a load request, or of a model's own metadata."""

    model_config = ConfigDict(extra="forbid", strict=True)

    patch_size: Patch | None = None
    patch_stride: Patch | None = None
    fp16: bool | None = None
    accumulate_device: Device | None = None
    forward_device: Device | None = None
    forward_batch_windows: Count | None = None
    argmax_batchsize: Count | None = None
    blend: Literal["constant", "gaussian"] | None = None
    engine: Literal["auto", "openvino", "onnxruntime", "torch"] | None = None
    skip_uniform: bool | None = None


class LoadRequest(BaseModel):
    """A checked load request. `inference_config` is what the client sent, `config` the same parsed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name = Field(min_length=1, max_length=255)
    backend_type: str
    model_path: str
    config_path: str | None = None
    inference_config: dict[str, Any] = {}
    window_level: Number | None = None
    window_width: Width | None = None
    orientation: Orientation | None = None
    labels: Labels | None = None
    strict: bool | None = None
    _names: Mapping[str, str] = PrivateAttr(default_factory=dict)

    def as_offered(self, names: Mapping[str, str]) -> LoadRequest:
        """The same, whose paths come from a model folder, not from a client, who is told these names."""
        self._names = names
        return self

    def told(self, text: str) -> str:
        """A text as whoever sent the request may read it."""
        return told(text, self._names)

    @property
    def config(self) -> InferenceConfig:
        """The inference configuration, parsed."""
        return parse(InferenceConfig, self.inference_config, "inference_config")


def parse_load_request(body: dict[str, Any]) -> LoadRequest:
    """Check a load request's body.

    Raises:
        BadInputError: naming the key, the value and what it may be.
    """
    request = parse(LoadRequest, body, "the request")
    _ = request.config
    return request


def parse(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Check `values` against `model`; nulls count as absent.

    Raises:
        BadInputError: one sentence naming every offending key.
    """
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise BadInputError(_sentence(error, model, where)) from None


def _sentence(error: ValidationError, model: type[BaseModel], where: str) -> str:
    problems = error.errors(include_url=False)
    unknown = [str(problem["loc"][0])[:LONGEST_SHOWN] for problem in problems if problem["type"] == "extra_forbidden"]
    if unknown:
        return f"Unknown key in {where}: {', '.join(unknown[:10])}. Known keys: {', '.join(model.model_fields)}."
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    if "error" in first.get("ctx", {}):
        return f"{key} {first['ctx']['error']}."
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]} (got {_shown(first['input'])})."
