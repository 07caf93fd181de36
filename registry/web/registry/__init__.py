"""Dialect 0: the registry's own API, for pipelines and scripts.

    GET  /api/v1/resolve     what a selector means: a receipt          receipts
    POST /api/v1/resolve     up to 100 of them, in one state
    GET  /api/v1/urls        links to the files of a receipt
    GET  /api/v1/md5sums     their checksums, for md5sum --check

What is answered and what is refused: docs/dialects/registry.md.
"""

from flask import Blueprint

from registry.services import Services
from registry.web.registry import receipts
from registry.web.registry.described import paths, schemas

__all__ = ["blueprint", "paths", "schemas"]


def blueprint(services: Services) -> Blueprint:
    """The routes of the dialect over the core."""
    routes = Blueprint("registry", __name__, url_prefix="/api/v1")
    receipts.add_to(routes, services)
    return routes
