"""What the inference routes are sent, in the README's short form and the client's full one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from pydantic_core import PydanticCustomError

from segserve.engines.registry import AUTO
from segserve.errors import BadInputError
from segserve.workers.tile_models import TileWish

Item = TypeVar("Item")
# A body may be as large as an upload: the problems of a million wrong items would fill the server's memory.
Listed = Annotated[list[Item], Field(fail_fast=True)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
NOWHERE = (
    'output_dir is missing: name a folder on the server for the maps, or send "output": "inline" '
    "to get them in the answer."
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _PassedOn(BaseModel):
    """A block whose types are checked here and whose meaning, unknown keys included, is the worker's business."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    def wire(self) -> dict[str, Any]:
        """The block as it was sent; nulls are absent keys."""
        return self.model_dump(exclude_unset=True, exclude_none=True)


class Normalization(_PassedOn):
    """How pixels become numbers near 0 to 1; what is absent, the model's metadata says."""

    strategy: str | None = None
    per_channel: bool | None = None
    clip_percentile: FiniteFloat | None = None
    min: FiniteFloat | None = None
    max: FiniteFloat | None = None
    precomputed: bool | None = None
    channel_stats: Listed[dict[str, Any]] | None = None


class LooseInputConfig(_PassedOn):
    """The images, where the server looks at nothing but the types."""

    num_channels: int | None = None
    selected_channels: Listed[int] | None = None
    normalization: Normalization | None = None


class InputConfig(LooseInputConfig):
    """The images, with what the JSON routes have always asked for."""

    num_channels: int
    normalization: Normalization


class Options(_PassedOn):
    """How to compute; `engine` is this server's own."""

    use_gpu: bool | None = None
    use_amp: bool | None = None
    engine: Literal["auto", "openvino", "onnxruntime"] | None = None
    reflection_padding: int | None = None
    gpu_batch_size: int | None = None

    @property
    def wish(self) -> TileWish:
        """What they say of where and how to compute."""
        return TileWish(use_gpu=self.use_gpu is not False, use_amp=self.use_amp, engine=self.engine or AUTO)


class Tile(_Part):
    """One tile: its data is a data URL, or a path on the server."""

    id: str
    data: str


@dataclass(frozen=True)
class Destination:
    """Where maps go: each to a file in `folder` as the client named it, or all into the answer if that is None."""

    folder: str | None
    want: Literal["maps", "classes"] = "maps"


class TileRequest(_Part):
    """What every request for tiles says."""

    model_path: Text
    options: Options | None = None

    def destination(self) -> Destination | None:
        """Where the maps go; None if class means are wanted instead."""
        return None


class JsonTiles(TileRequest):
    """The body of `POST /inference`."""

    input_config: InputConfig
    tiles: Listed[Tile]


class BlobTiles(TileRequest):
    """The `metadata` part of `POST /inference/binary`; sizes are in pixels."""

    input_config: LooseInputConfig
    tile_ids: Listed[str]
    tile_height: Annotated[int, Field(ge=0)]
    tile_width: Annotated[int, Field(ge=0)]
    num_channels: Annotated[int, Field(ge=0)]
    dtype: Literal["uint8", "float32"] = "uint8"


class _Maps(TileRequest):
    output_dir: Text | None = None
    output: Literal["inline"] | None = None
    format: Literal["float32", "classes"] | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.output_dir is None and self.output is None:
            raise PydanticCustomError("missing", NOWHERE)
        return self

    def destination(self) -> Destination:
        """Where the maps go.

        Raises:
            BadInputError: the request names two places, or a format that files do not have.
        """
        if self.output and self.output_dir:
            raise BadInputError('Send either output_dir or "output": "inline", not both.')
        if self.format == "classes" and not self.output:
            raise BadInputError('"format": "classes" goes with "output": "inline" only: files hold float32.')
        return Destination(self.output_dir, "classes" if self.format == "classes" else "maps")


class JsonMaps(JsonTiles, _Maps):
    """The body of `POST /inference/pixel`."""


class BlobMaps(BlobTiles, _Maps):
    """The `metadata` part of `POST /inference/pixel/binary`."""
