"""The application for a WSGI server: `gunicorn registry.wsgi:app`. Reads REGISTRY_CONFIG."""

from registry.services import Services
from registry.settings import Settings
from registry.web import create_app

app = create_app(Services.of(Settings.load()))
