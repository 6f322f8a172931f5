"""What a network takes, and how a request's tiles are to be read: from the request first, then the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from segserve.errors import BadInputError
from segserve.models.request import parse
from segserve.tiles.normalize import Normalization, Strategy
from segserve.tiles.statistics import ChannelStats

Size = tuple[int, int]
COUNT = TypeAdapter(Annotated[int, Field(ge=1, le=2**31 - 1)])  # takes 3.0, as QuPath rewrites whole numbers
RULES = frozenset({"strategy", "per_channel", "clip_percentile", "min", "max"})


@dataclass(frozen=True)
class Needs:
    """What a network takes.

    Attributes:
        channels: of its input; None for whatever comes.
        context: the first half of the channels is the tile, the second a wider view of its place.
        divisor: height and width are multiples of this.
        least: and at least this.
        fixed: the one (height, width) that it takes.
    """

    channels: int | None
    context: bool
    divisor: int
    least: int
    fixed: Size | None

    @staticmethod
    def of(metadata: Mapping[str, Any], input_shape: tuple[int | None, ...]) -> Needs:
        """What the network says itself, else what its metadata says.

        Args:
            metadata: the model's, of any origin; what makes no sense in it is passed over.
            input_shape: (N, C, H, W) of the network, None where it takes any size.
        """
        _, own, height, width = input_shape
        architecture = _part(metadata, "architecture")
        detail = _count(_part(metadata, "input_config").get("num_channels"))
        context = (_count(architecture.get("context_scale")) or 1) > 1
        if own is not None and detail is not None and own in {detail, 2 * detail}:
            context = own > detail
        detail = detail or _count(architecture.get("input_channels"))
        return Needs(
            channels=own or (detail and detail * (2 if context else 1)),
            context=context and (own is None or own % 2 == 0),
            divisor=_count(metadata.get("size_divisor")) or 1,
            least=_count(metadata.get("size_least")) or 1,
            fixed=(height, width) if height and width else None,
        )


@dataclass(frozen=True)
class Recipe:
    """How a request's tiles are read.

    Attributes:
        selected: numbers of the channels to keep, in order; empty for all.
        normalization: of their values.
        stats: of the training set, or of the whole image; empty where each tile counts for itself.
        padding: pixels reflected on each side while the network looks at a tile.
    """

    selected: tuple[int, ...]
    normalization: Normalization
    stats: tuple[ChannelStats, ...]
    padding: int

    @staticmethod
    def of(request: Mapping[str, Any], metadata: Mapping[str, Any]) -> Recipe:
        """Read the request; what it leaves out comes from the model, then from the protocol's defaults.

        Args:
            request: `input_config` and `options`, as the client sent them; both may be absent.
            metadata: the model's.

        Raises:
            BadInputError: a value makes no sense; with the key and the value.
        """
        asked = parse(_Request, request, "the request")
        wish = asked.input_config.normalization
        normalization = _normalization(wish, metadata)
        return Recipe(
            tuple(asked.input_config.selected_channels or ()),
            normalization,
            _stats(wish, normalization, metadata),
            asked.options.reflection_padding or 0,
        )


def _object(value: object) -> object:
    if value is None:
        return {}
    if not isinstance(value, Mapping | BaseModel):
        raise ValueError(f"must be an object, not {repr(value)[:80]}")  # noqa: TRY004  # pydantic's way
    return value


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Wish(_Part):
    strategy: Annotated[Strategy, BeforeValidator(lambda value: str(value).lower())] | None = None
    per_channel: bool | None = None
    clip_percentile: Annotated[FiniteFloat, Field(gt=50, le=100)] | None = None
    min: FiniteFloat | None = None
    max: FiniteFloat | None = None
    precomputed: bool | None = None
    channel_stats: list[dict[str, Any]] | None = None

    def rules(self) -> dict[str, Any]:
        return self.model_dump(include=set(RULES), exclude_none=True)


class _InputConfig(_Part):
    selected_channels: list[Annotated[int, Field(ge=0)]] | None = None
    normalization: Annotated[_Wish, BeforeValidator(_object)] = _Wish()


class _Options(_Part):
    reflection_padding: Annotated[int, Field(ge=0)] | None = None


class _Request(_Part):
    input_config: Annotated[_InputConfig, BeforeValidator(_object)] = _InputConfig()
    options: Annotated[_Options, BeforeValidator(_object)] = _Options()


def _normalization(wish: _Wish, metadata: Mapping[str, Any]) -> Normalization:
    rules = wish.rules()
    known = {
        "strategy": _part(metadata, "channel_config").get("normalization_strategy"),
        **_part(_part(metadata, "input_config"), "normalization"),
    }
    missing = {key: value for key, value in known.items() if key in RULES - rules.keys()}
    try:
        rules |= parse(_Wish, missing, "metadata.json").rules()
    except BadInputError as error:
        raise BadInputError(f"The model's metadata.json cannot be followed, {error.message}") from None
    normalization = Normalization(**rules)
    low, high = normalization.fixed_range
    if normalization.strategy == "fixed_range" and low >= high:
        raise BadInputError(f"The fixed range runs from {low:g} to {high:g}: min must be below max.")
    return normalization


def _stats(wish: _Wish, normalization: Normalization, metadata: Mapping[str, Any]) -> tuple[ChannelStats, ...]:
    if wish.precomputed and wish.channel_stats:
        return tuple(ChannelStats.from_wire(entry) for entry in wish.channel_stats)
    if normalization.strategy == "fixed_range" and not (wish.min is None and wish.max is None):
        return ()  # the range asked for, rather than the training's
    known = metadata.get("normalization_stats") or []
    if not isinstance(known, list) or not all(isinstance(entry, Mapping) for entry in known):
        raise BadInputError(
            "normalization_stats in the model's metadata.json is no list of one object for each channel: mend or "
            "remove it."
        )
    return tuple(ChannelStats.from_wire(entry) for entry in known)


def _part(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = holder.get(key)
    return part if isinstance(part, Mapping) else {}


def _count(value: object) -> int | None:
    try:
        return COUNT.validate_python(value)
    except ValidationError:
        return None
