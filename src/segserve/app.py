"""The ASGI application for launchers of your own: `uvicorn segserve.app:app`."""

from segserve import logs
from segserve.api.build import create_app
from segserve.settings import Settings
from segserve.state import StateDir

settings = Settings()
logs.configure(debug=settings.debug, form=settings.log_format)
app = create_app(settings, StateDir(settings.state_dir))
