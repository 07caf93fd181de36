"""What the registry is measured against: Flask alone, with the same answer and nothing behind it.

Run as `BARE_ANSWER={...} gunicorn benchmarks.bare:app`.
"""

import json
import os

from flask import Flask, Response

_ANSWER: dict[str, str] = json.loads(os.environ["BARE_ANSWER"])

app = Flask(__name__, static_folder=None)


@app.get("/api/model-registry/get-download-uris")
def get_download_uris() -> dict[str, str]:
    """The same JSON as the registry's answer."""
    return _ANSWER


@app.get("/api/v1/resolve")
def resolve() -> Response:
    """The answer to who has the registry's answer already."""
    return Response(status=304)
