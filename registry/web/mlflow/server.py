"""What a client may ask about the server itself."""

from registry.domain import Principal
from registry.services import Services
from registry.web.mlflow.wire import Json, Message


def info(services: Services, _: Principal, __: Message) -> Json:
    """server-info: what a client can make use of. What is not said, it takes for false.

    Downloads and uploads by links are announced where those lead past this service, to the store
    itself.
    """
    return {
        "store_type": "SqlStore",
        "workspaces_enabled": False,
        "trace_archival_enabled": False,
        "multipart_uploads_enabled": services.keeper.parts is not None,
        "multipart_downloads_enabled": services.keeper.location.signer.store is not None,
        "artifact_serving_enabled": True,
    }
