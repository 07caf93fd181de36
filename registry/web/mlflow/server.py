"""What a client may ask about the server itself."""

from registry.domain import Principal
from registry.services import Services
from registry.web.mlflow.wire import Json, Message


def info(_: Services, __: Principal, ___: Message) -> Json:
    """server-info: what a client can make use of. What is not said, it takes for false."""
    return {
        "store_type": "SqlStore",
        "workspaces_enabled": False,
        "trace_archival_enabled": False,
        "multipart_uploads_enabled": False,
        "multipart_downloads_enabled": False,
        "artifact_serving_enabled": False,
    }
