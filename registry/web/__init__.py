"""HTTP: the only place that knows Flask. Each dialect is a module over the same core."""

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from registry.services import Services
from registry.web import (
    auth,
    docs,
    errors,
    exchange,
    health,
    hooks,
    mlflow,
    objects,
    observe,
    openapi,
    registry,
    studio,
)

__all__ = ["create_app"]


def create_app(services: Services, linger: float = observe.LINGER) -> Flask:
    """The WSGI application that answers for `services`. `linger`: see `observe.Watch`, which is the
    extension `watch` of the application.
    """
    app = Flask(__name__, static_folder=None)
    errors.install(app)
    auth.install(app, services)
    app.register_blueprint(studio.blueprint(services))
    app.register_blueprint(registry.blueprint(services))
    app.register_blueprint(objects.blueprint(services))
    app.register_blueprint(mlflow.blueprint(services))
    app.register_blueprint(hooks.blueprint(services))
    app.register_blueprint(exchange.blueprint(services))
    app.register_blueprint(openapi.blueprint())
    app.register_blueprint(docs.blueprint(services))
    app.register_blueprint(health.blueprint(services))
    known = registry.Unchanged(studio.Again(app.wsgi_app, services), services)
    watch = observe.Watch(known, services.metrics, linger)
    app.wsgi_app = app.extensions["watch"] = watch  # type: ignore[method-assign]
    if services.trusted_proxies:
        # Only who asks: links are made from public_url, whatever a proxy says about hosts.
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=services.trusted_proxies, x_proto=0
        )
    return app
