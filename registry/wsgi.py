"""The application for a WSGI server: `gunicorn registry.wsgi:app`. Reads REGISTRY_CONFIG."""

import atexit
import gc

from registry import logs, server
from registry.services import Services
from registry.settings import Settings
from registry.web import create_app

logs.configure()
_services = Services.of(Settings.load(), notices=server.NOTICES)
atexit.register(_services.close)  # audit rows that wait are written, and Git is ended
app = create_app(_services)
atexit.register(app.extensions["watch"].flush)
_services.watch()

# What is there after the start stays: no collection between requests looks at it again.
gc.collect()
gc.freeze()
