"""HTTP: the only place that knows Flask. Each dialect is a module over the same core."""

from flask import Flask, Response

from registry.services import Services
from registry.web import auth, errors, objects, studio

__all__ = ["create_app"]


def create_app(services: Services) -> Flask:
    """The WSGI application that answers for `services`."""
    app = Flask(__name__, static_folder=None)
    errors.install(app)
    auth.install(app, services.access)
    app.register_blueprint(studio.blueprint(services))
    app.register_blueprint(objects.blueprint(services))

    @app.get("/healthz")
    @auth.public
    def healthz() -> Response:
        """Whether the process answers; nothing else is looked at."""
        return Response('{"status":"ok"}', mimetype="application/json")

    @app.after_request
    def _harden(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return app
