"""Where the daemon is and what opens its door: options shared by the synchronous and the asynchronous client."""
from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional, Tuple

import grpc

from sagequant.errors import InvalidArgumentError, UnavailableError

_LIMIT = 256 << 20


_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def system_roots() -> bytes:
    """The authorities this machine trusts, as PEM. gRPC by itself would take a list of its own."""
    certificates = ssl.create_default_context().get_ca_certs(binary_form=True)
    if certificates:
        return "".join(ssl.DER_cert_to_PEM_cert(each) for each in certificates).encode()
    for path in map(Path, _BUNDLES):  # OpenSSL looks into a folder here and has read nothing yet
        if path.exists():
            return path.read_bytes()
    raise UnavailableError(f"tls: this machine must have a bundle of authorities, found none of {', '.join(_BUNDLES)}; name one with ca",
                           "NO_SYSTEM_ROOTS")


@dataclass(frozen=True)
class Connection:
    """`server` is HOST:PORT or unix:PATH; unset it is SAGE_SERVER, or 127.0.0.1:50551. Any of tls, ca, cert, key turns TLS on; without
    a ca the machine's own authorities are trusted.

    `timeout` bounds each call in seconds, but not the wait for a long operation.
    """

    server: Optional[str] = None
    token: Optional[str] = None
    token_file: Optional[str] = None
    ca: Optional[str] = None
    cert: Optional[str] = None
    key: Optional[str] = None
    tls: bool = False
    timeout: Optional[float] = None

    def address(self) -> str:
        server = self.server or os.environ.get("SAGE_SERVER") or "127.0.0.1:50551"
        if server.startswith(("http://", "https://")):
            raise InvalidArgumentError(f"server: HOST:PORT of the daemon's gRPC port, got the URL {server!r}; its HTTP port "
                                       "speaks the OpenAI API", "SERVER_IS_URL")
        return server[len("grpc://"):] if server.startswith("grpc://") else server

    def metadata(self) -> List[Tuple[str, str]]:
        token = self.token
        if self.token_file:
            token = (Path(self.token_file).read_text().splitlines() or [""])[0].strip()
            # The daemon's own list has names and roles beside its tokens: sent as a token it would only be called wrong.
            if not token or set(token) & set(" \t#"):
                raise InvalidArgumentError(f"{self.token_file}: the first line must be the token and nothing else", "TOKEN_FILE")
        return [("authorization", f"Bearer {token}")] if token else []

    def credentials(self) -> Optional[grpc.ChannelCredentials]:
        if not (self.tls or self.ca or self.cert or self.key):
            return None
        read = lambda path: Path(path).read_bytes() if path else None  # noqa: E731
        return grpc.ssl_channel_credentials(read(self.ca) or system_roots(), read(self.key), read(self.cert))

    def open(self, module: Any) -> Any:
        """A channel of `module`: grpc or grpc.aio."""
        options = [("grpc.max_receive_message_length", _LIMIT), ("grpc.max_send_message_length", _LIMIT)]
        credentials = self.credentials()
        if credentials is None:
            return module.insecure_channel(self.address(), options=options)
        return module.secure_channel(self.address(), credentials, options=options)
