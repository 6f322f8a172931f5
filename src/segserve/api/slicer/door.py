"""What "the current model" means, which only this dialect knows."""

from __future__ import annotations

from typing import Any

from segserve.api.progress import Progress
from segserve.errors import BadInputError, MissingError, some
from segserve.models.request import LoadRequest
from segserve.models.shelf import Offer
from segserve.workers.loaded import LoadedModel
from segserve.workers.offers import Offers
from segserve.workers.supervisor import Supervisor


class Door:
    """Many models by name, and one of them perhaps current.

    Attributes:
        progress: of the requests to segment.
        offers: the models of the model folders.
    """

    def __init__(self, supervisor: Supervisor, offers: Offers) -> None:
        self.progress = Progress()
        self.offers = offers
        self._supervisor = supervisor
        self._current: str | None = None

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
            await self.unload(previous)
        return model

    async def unload(self, name: str) -> None:
        """End a model by name; one of a model folder stays away until a request names it.

        Raises:
            MissingError: it is not loaded.
        """
        # Before, not after: while the old process ends, a new model of that name may become current.
        if self._current == name:
            self._current = None
        was_coming = await self.offers.withdraw(name)
        if name in self._supervisor.models or not was_coming:
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

    def default(self) -> LoadedModel:
        """The model that a request without a name means: the shown one.

        Raises:
            BadInputError: none or several could be meant.
        """
        model = self.shown
        if model:
            return model
        if self._supervisor.models:
            raise BadInputError(f"Several models are loaded: send model_name, one of {some(self._supervisor.models)}.")
        offered = self.offers.here
        hint = f". Send model_name, one of those that the server offers: {some(offered)}." if offered else ""
        raise BadInputError(f"No model loaded{hint}")

    async def named(self, name: str) -> LoadedModel:
        """The model of a name, loaded first if it lies in a model folder.

        Raises:
            MissingError: there is none.
            SegserveError: it cannot be loaded, and why.
        """
        await self.offers.ready(name)
        return self._supervisor.get(name)

    def listing(self) -> dict[str, dict[str, Any]]:
        """Every model, loaded or offered, as the wire's MODEL, by name."""
        loaded = {name: self.view(model) for name, model in self._supervisor.models.items()}
        offered = {
            name: {**_offer_view(standing.offer), **self.offers.state_of(name)}
            for name, standing in self.offers.here.items()
            if name not in loaded
        }
        return {**loaded, **offered}

    def view(self, model: LoadedModel) -> dict[str, Any]:
        """A loaded model as the wire's MODEL: the protocol's six fields, then what is in force."""
        request = model.request
        return {
            "name": request.name,
            "backend_type": request.backend_type,
            "model_path": request.told(request.model_path),
            "config_path": request.told(request.config_path) if request.config_path else None,
            "inference_config": request.inference_config,
            "loaded": True,
            **model.card,
            "seconds_per_patch": model.seconds_per_patch,
            **self.offers.state_of(request.name),
        }


def _offer_view(offer: Offer) -> dict[str, Any]:
    """A model that is not loaded as the wire's MODEL: the protocol's six fields."""
    return {
        "name": offer.name,
        "backend_type": offer.body["backend_type"],
        "model_path": offer.shown_path,
        "config_path": offer.shown_config,
        "inference_config": offer.body.get("inference_config", {}),
        "loaded": False,
    }
