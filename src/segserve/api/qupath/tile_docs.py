"""What `/docs` shows of the inference routes, which read their bodies themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from segserve.api.qupath.tile_request import BlobMaps, BlobTiles, JsonMaps, JsonTiles
from segserve.api.uploads import form_schema

Schema = dict[str, Any]


def _schema(model: type[BaseModel]) -> Schema:
    """A model's schema in one piece: a reference to a part of itself leads nowhere inside a larger document."""
    whole = model.model_json_schema()
    parts = whole.pop("$defs", {})

    def resolved(value: Any) -> Any:  # noqa: ANN401  # JSON
        if isinstance(value, list):
            return [resolved(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return resolved(parts[value["$ref"].rpartition("/")[2]])
        return {key: resolved(entry) for key, entry in value.items()}

    found: Schema = resolved(whole)
    return found


def _json(schema: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _form(model: type[BaseModel]) -> Schema:
    return form_schema(
        ["metadata", "tiles"],
        {
            "metadata": {**_schema(model), "description": "JSON, as text."},
            "tiles": {
                "type": "string",
                "format": "binary",
                "description": "All tiles one after the other, each height x width x channels, rows first, "
                "channels interleaved; float32 is little-endian.",
            },
        },
    )


TILES_BODY = _json(_schema(JsonTiles))
MAPS_BODY = _json(_schema(JsonMaps))
TILES_FORM = _form(BlobTiles)
MAPS_FORM = _form(BlobMaps)
PATHS_BODY = _json({"type": "array", "items": {"type": "string"}, "description": "Paths of tiles on the server."})
MAPS_ANSWER: dict[int | str, Schema] = {
    200: {
        "description": 'Paths of the maps; with `"output": "inline"` the maps themselves, one after the other, '
        "their shapes in the header `X-Segserve-Shapes` and the number of classes in `X-Segserve-Classes`.",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
