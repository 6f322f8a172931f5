"""What `/docs` shows of bodies that the routes read themselves."""

from __future__ import annotations

from typing import Any

from segserve.api.uploads import form_schema
from segserve.models.backends import BACKENDS
from segserve.models.request import InferenceConfig, LoadRequest

MEANINGS = {
    "backend_type": "the kind of network, in capital or small letters",
    "model_path": "the network's file on the server's machine, or the name of a model of a model folder",
    "config_path": "the configuration of an mmengine model; ignored otherwise",
    "strict": "for mmengine: false loads a checkpoint that does not fit the network, with warnings",
}


def _load_schema() -> dict[str, Any]:
    schema = LoadRequest.model_json_schema()
    schema["properties"]["inference_config"] = InferenceConfig.model_json_schema()
    schema["properties"]["backend_type"] = {"type": "string", "enum": list(BACKENDS)}
    for key, meaning in MEANINGS.items():
        schema["properties"][key]["description"] = meaning
    schema["required"] = ["backend_type", "model_path"]
    schema["example"] = {
        "name": "brain",
        "backend_type": "onnx",
        "model_path": "/path/to/model.onnx",
        "inference_config": {},
    }
    return schema


LOAD_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _load_schema()}}}
}
INFER_BODY = form_schema(
    "image",
    {
        "image": {
            "type": "string",
            "format": "binary",
            "description": "the volume: NIfTI, NRRD or MetaImage, in one file",
        },
        "model_name": {"type": "string", "description": "a loaded or offered model; the current one if absent"},
        "window_level": {"type": "string", "description": "centre of the intensity window"},
        "window_width": {"type": "string", "description": "width of the intensity window"},
        "force_cpu": {"type": "string", "enum": ["true", "false"]},
    },
)
_ERROR = {"content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "What is wrong, in one sentence", **_ERROR},
    "5XX": {"description": "501, 503 or 507: what is missing, busy or full", **_ERROR},
}
LABEL_MAP: dict[int | str, dict[str, Any]] = {
    200: {"description": "The label map, .nii.gz", "content": {"application/octet-stream": {}}}
}
