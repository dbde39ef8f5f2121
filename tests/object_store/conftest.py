"""An S3 server on loopback. What is tested here is about no other module than its name says:
storage.py, or what store.py, run.py, checkpoint.py and weights.py do where there is no disk."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from langsamp_jax.io import storage


class Request(NamedTuple):
    method: str
    path: str  # /BUCKET/KEY
    query: str
    range: str | None


class S3Server:
    """One bucket, ``s3://bucket``, empty at first.

    Attributes:
      environment: the variables with which clients find it.
      requests: what it was asked so far.
      refuse: called with each request; True answers 403.
    """

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server
        from werkzeug.wrappers import Response

        self.requests: list[Request] = []
        self.refuse: Callable[[Request], bool] = lambda request: False
        application = DomainDispatcherApplication(create_backend_app)

        def answer(environ: dict[str, Any], start_response: Callable) -> Any:
            query, span = environ.get("QUERY_STRING", ""), environ.get("HTTP_RANGE")
            request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], query, span)
            self.requests.append(request)
            if self.refuse(request):
                body = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                return Response(body, 403, mimetype="text/xml")(environ, start_response)
            return application(environ, start_response)

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server("127.0.0.1", 0, answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()


@pytest.fixture(scope="session")
def _server() -> Iterator[S3Server]:
    pytest.importorskip("moto")
    fsspec = pytest.importorskip("fsspec")
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        storage.location("s3://bucket")
        fsspec.filesystem("s3").mkdir("bucket")
    yield server
    server.close()


@pytest.fixture
def s3(_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server; this process and those that it starts find it."""
    for name, value in _server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("EPATH_USE_TF", "0")
    # Read once in a process: other tests in this one may have had TensorFlow's paths.
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    storage._s3_settings.cache_clear()
    _server.requests.clear()
    yield _server
    _server.refuse = lambda request: False
    storage._s3_settings.cache_clear()


@pytest.fixture
def put(s3: S3Server, tmp_path: Path) -> Callable[[Path, str], str]:
    """``put(folder, name)``: a copy of the folder at ``s3://bucket/TEST/name``."""

    def put(folder: Path, name: str) -> str:
        url = f"s3://bucket/{tmp_path.name}/{name}"
        storage.upload(folder, storage.location(url))
        s3.requests.clear()
        return url

    return put
