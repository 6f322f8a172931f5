"""What the inspector can be asked. Torch is imported by the first question that needs it: scans of data do not."""

from __future__ import annotations

from typing import Any

from segserve.training.data.check import quick_check
from segserve.training.data.request import DataRequest
from segserve.training.spec import TrainingSpec
from segserve.workers.verbs.base import Request

SCAN_SECONDS = 45.0


class InspectionVerbs:
    """The verbs of the inspector."""

    def layers(self, request: Request) -> dict[str, Any]:
        """The layer groups of a network."""
        from segserve.training.network import inspect

        return {"layers": inspect.layers(request.body)}

    def encoder(self, request: Request) -> dict[str, Any]:
        """One encoder's catalogue entry."""
        from segserve.training.network import inspect

        return inspect.encoder(request.body)

    def all_encoders(self, request: Request) -> dict[str, Any]:
        """Every encoder's catalogue entry."""
        from segserve.training.network import inspect

        return {"encoders": inspect.all_encoders(request.body)}

    def combinations(self, request: Request) -> dict[str, Any]:
        """Whether an architecture works with an encoder."""
        from segserve.training.network import inspect

        return inspect.combinations(request.body)

    def network(self, request: Request) -> dict[str, Any]:
        """Everything that can be known of a network before it is trained."""
        from segserve.training.network import inspect

        return inspect.check_network(request.body)

    def data(self, request: Request) -> dict[str, Any]:
        """Everything that can be known of a training's data in reasonable time."""
        spec = TrainingSpec.model_validate(request.body["spec"])
        return quick_check(DataRequest.of(spec), SCAN_SECONDS).to_wire()

    def tile_network(self, request: Request) -> dict[str, Any]:
        """What an uploaded ONNX file holds."""
        from segserve.models.formats.tile_onnx import describe

        return describe(request.inputs["file"])
