"""Dialect 0: the registry's own API, for pipelines and scripts.

    GET  /api/v1/resolve     what a selector means: a receipt          receipts
    POST /api/v1/resolve     up to 100 of them, in one state
    GET  /api/v1/urls        links to the files of a receipt
    GET  /api/v1/md5sums     their checksums, for md5sum --check

    GET  /api/v1/repositories                                          artifacts
    GET  /api/v1/repositories/REPO/artifacts
    GET  /api/v1/repositories/REPO/artifacts/NAME
    GET  /api/v1/repositories/REPO/artifacts/NAME/versions | history | explain

In a path a slash of REPO or NAME is spelled `~`, which neither can hold: `team~models`. Proxies
lose a slash that is encoded, and an artifact may well be called `m/versions`.

What is answered and what is refused: docs/dialects/registry.md.
"""

from flask import Blueprint

from registry.services import Services
from registry.web.registry import artifacts, receipts
from registry.web.registry.described import paths, schemas
from registry.web.registry.unchanged import Unchanged

__all__ = ["Unchanged", "blueprint", "paths", "schemas"]


def blueprint(services: Services) -> Blueprint:
    """The routes of the dialect over the core."""
    routes = Blueprint("registry", __name__, url_prefix="/api/v1")
    receipts.add_to(routes, services)
    artifacts.add_to(routes, services)
    return routes
