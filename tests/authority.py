"""Certificates for tests: an authority of our own, what it issues, and clients that trust it."""

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, as the files that a setting names."""

    certfile: str
    keyfile: str

    @property
    def certificate(self) -> str:
        """The certificate in PEM."""
        return Path(self.certfile).read_text(encoding="ascii")

    def spoil_key(self) -> None:
        """Put something else in the place of the key."""
        Path(self.keyfile).write_text("words", encoding="ascii")

    @property
    def options(self) -> tuple[str, ...]:
        """The two as options of the command line."""
        return ("--ssl-certfile", self.certfile, "--ssl-keyfile", self.keyfile)

    @property
    def settings(self) -> dict[str, str]:
        """The two as settings."""
        return {"ssl_certfile": self.certfile, "ssl_keyfile": self.keyfile}


class Authority:
    """Issues certificates into a directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.ca = trustme.CA()
        self.certfile = str(directory / "authority.pem")
        self.ca.cert_pem.write_to_path(self.certfile)

    @property
    def certificate(self) -> str:
        """Its own certificate in PEM."""
        return Path(self.certfile).read_text(encoding="ascii")

    def issue(
        self,
        name: str = "localhost",
        *,
        file: str = "server",
        common_name: str | None = None,
        password: str = "",
        begins: datetime.timedelta = datetime.timedelta(days=-1),
        ends: datetime.timedelta = datetime.timedelta(days=90),
    ) -> Issued:
        """Issue a certificate for a name and 127.0.0.1, valid from and until then from now."""
        now = datetime.datetime.now(datetime.UTC)
        issued = self.ca.issue_cert(
            name,
            "127.0.0.1",
            common_name=common_name,
            organization_name="Sprockets, Inc.",
            not_before=now + begins,
            not_after=now + ends,
        )
        key = issued.private_key_pem.bytes()
        if password:
            key = load_pem_private_key(key, None).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
            )
        made = Issued(str(self.directory / f"{file}.pem"), str(self.directory / f"{file}.key"))
        # In one step each, as those who renew certificates do it.
        for path, data in (
            (made.certfile, b"".join(blob.bytes() for blob in issued.cert_chain_pems)),
            (made.keyfile, key),
        ):
            fresh = Path(path + ".new")
            fresh.write_bytes(data)
            fresh.replace(path)
        return made

    def client(self, issued: Issued | None = None) -> ssl.SSLContext:
        """Return the context of a client that trusts this authority, and may show who it is."""
        context = ssl.create_default_context(cafile=self.certfile)
        if issued is not None:
            context.load_cert_chain(issued.certfile, issued.keyfile)
        return context
