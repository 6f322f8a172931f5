"""What "the current model" means, which only this dialect knows."""

from __future__ import annotations

from typing import Any

from segserve.api.progress import Progress
from segserve.errors import BadInputError, MissingError
from segserve.models.request import LoadRequest
from segserve.workers.loaded import LoadedModel
from segserve.workers.supervisor import Supervisor


class Door:
    """Many models by name, and one of them perhaps current.

    Attributes:
        progress: of the requests to segment.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.progress = Progress()
        self._supervisor = supervisor
        self._current: str | None = None

    @property
    def models(self) -> dict[str, LoadedModel]:
        """Every loaded model."""
        return dict(self._supervisor.models)

    @property
    def shown(self) -> LoadedModel | None:
        """The current model, else the only one loaded, else None."""
        models = self._supervisor.models
        if self._current is not None and self._current in models:
            return models[self._current]
        return next(iter(models.values())) if len(models) == 1 else None

    async def load(self, request: LoadRequest) -> LoadedModel:
        """Load a model beside the others; the current one stays current."""
        return await self._supervisor.load(request)

    async def load_current(self, request: LoadRequest) -> LoadedModel:
        """Load a model, make it current, and end the one that was."""
        model = await self._supervisor.load(request)
        previous, self._current = self._current, request.name
        if previous is not None and previous != request.name and previous in self._supervisor.models:
            await self._supervisor.unload(previous)
        return model

    async def unload(self, name: str) -> None:
        """End a model by name.

        Raises:
            MissingError: it is not loaded.
        """
        # Before, not after: while the old process ends, a new model of that name may become current.
        if self._current == name:
            self._current = None
        await self._supervisor.unload(name)

    async def unload_shown(self) -> None:
        """End the model that `shown` shows.

        Raises:
            MissingError: it shows none.
        """
        model = self.shown
        if model is None:
            raise MissingError("No model loaded")
        await self.unload(model.request.name)

    def choose(self, name: str) -> LoadedModel:
        """The model an inference request means: the named one, or the shown one if none is named.

        Raises:
            MissingError: it is not loaded.
            BadInputError: none is named, and none or several could be meant.
        """
        if name:
            return self._supervisor.get(name)
        model = self.shown
        if model is None and self._supervisor.models:
            raise BadInputError(f"Several models are loaded: send model_name, one of {', '.join(self.models)}.")
        if model is None:
            raise BadInputError("No model loaded")
        return model


def model_view(model: LoadedModel) -> dict[str, Any]:
    """A loaded model as the wire's MODEL: the protocol's six fields, then what is in force."""
    request = model.request
    return {
        "name": request.name,
        "backend_type": request.backend_type,
        "model_path": request.model_path,
        "config_path": request.config_path,
        "inference_config": request.inference_config,
        "loaded": True,
        **model.card,
        "seconds_per_patch": model.seconds_per_patch,
    }
