import contextlib
import datetime
import string

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from asgictl_worker import certificates
from asgictl_worker.certificates import Certificate, MalformedCertificate

KEY = ec.generate_private_key(ec.SECP256R1())
FROM = datetime.datetime(2024, 2, 29, 23, 59, 58, tzinfo=datetime.UTC)
UNTIL = datetime.datetime(2031, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def certificate(
    name: x509.Name, begin: datetime.datetime = FROM, end: datetime.datetime = UNTIL
) -> bytes:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody else")]))
        .public_key(KEY.public_key())
        .serial_number(4711)
        .not_valid_before(begin)
        .not_valid_after(end)
        .sign(KEY, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def subject(*attributes: x509.NameAttribute) -> str:
    return certificates.parse(certificate(x509.Name(attributes))).subject


def common_name(text: str) -> str:
    return subject(x509.NameAttribute(NameOID.COMMON_NAME, text))


def test_a_certificate_says_whose_it_is_and_how_long_it_is_valid() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    assert certificates.parse(certificate(name)) == Certificate("CN=here", FROM, UNTIL)


@pytest.mark.parametrize("year", [1950, 1999, 2000, 2049, 2050, 2500])
def test_times_are_read_in_both_of_their_forms(year: int) -> None:
    end = datetime.datetime(year, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    begin = datetime.datetime(1950, 1, 1, tzinfo=datetime.UTC)
    found = certificates.parse(certificate(x509.Name([]), begin, end))
    assert (found.not_before, found.not_after) == (begin, end)


def test_the_last_part_of_a_name_comes_first() -> None:
    assert (
        subject(
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "com"),
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "example"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sprockets"),
            x509.NameAttribute(NameOID.COMMON_NAME, "one"),
        )
        == "CN=one,O=Sprockets,DC=example,DC=com"
    )


def test_a_part_of_several_attributes_is_joined_by_plus() -> None:
    several = x509.RelativeDistinguishedName(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "one"),
            x509.NameAttribute(NameOID.USER_ID, "two"),
        ]
    )
    text = certificates.parse(certificate(x509.Name([several]))).subject
    assert sorted(text.split("+")) == ["CN=one", "UID=two"]


def test_what_has_no_short_name_is_shown_in_its_encoding() -> None:
    # RFC 4514, section 4, has such an example.
    text = subject(x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b", _type=_ASN1Type.IA5String))
    assert text == "1.2.840.113549.1.9.1=#1603614062"


@pytest.mark.parametrize("kind", ["UTF8String", "BMPString", "UniversalString"])
def test_texts_are_read_in_all_their_encodings(kind: str) -> None:
    attribute = x509.NameAttribute(NameOID.COMMON_NAME, "Łódź", _type=_ASN1Type[kind])
    assert subject(attribute) == "CN=Łódź"


def test_the_oldest_of_encodings_is_read_as_latin_1() -> None:
    utf8 = certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "caf?")]))
    teletex = utf8.replace(b"\x0c\x04caf?", b"\x14\x04caf\xe9")
    assert certificates.parse(teletex).subject == "CN=café"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a, b", "a\\, b"),
        ("#1", "\\#1"),
        ("1#", "1#"),
        (" a ", "\\ a\\ "),
        ('"+;<>\\', '\\"\\+\\;\\<\\>\\\\'),
        ("a=b", "a=b"),
        ("new\nline", "new\\0Aline"),
        ("bell\x07\x7f", "bell\\07\\7F"),
    ],
)
def test_what_means_something_in_a_name_is_escaped(text: str, shown: str) -> None:
    assert common_name(text) == f"CN={shown}"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    NameOID.COMMON_NAME,
                    NameOID.ORGANIZATION_NAME,
                    NameOID.LOCALITY_NAME,
                    NameOID.USER_ID,
                    NameOID.STREET_ADDRESS,
                ]
            ),
            st.text(string.ascii_letters + string.punctuation + " äß€😀", min_size=1, max_size=40),
        ),
        max_size=5,
    )
)
def test_names_are_those_that_another_library_reads(
    parts: list[tuple[x509.ObjectIdentifier, str]],
) -> None:
    name = x509.Name([x509.NameAttribute(*part) for part in parts])
    assert certificates.parse(certificate(name)).subject == name.rfc4514_string()


@given(st.integers(0, 2000), st.integers(0, 255))
def test_a_damaged_certificate_is_malformed_or_read_but_nothing_else(at: int, byte: int) -> None:
    der = bytearray(certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "one")])))
    der[at % len(der)] = byte
    with contextlib.suppress(MalformedCertificate):
        assert isinstance(certificates.parse(bytes(der)), Certificate)


@given(st.binary(max_size=200))
def test_any_bytes_are_malformed_or_read_but_nothing_else(data: bytes) -> None:
    with pytest.raises(MalformedCertificate):
        certificates.parse(data)


@given(st.integers(0, 2000))
def test_a_certificate_cut_short_is_malformed(size: int) -> None:
    der = certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "one")]))
    with pytest.raises(MalformedCertificate):
        certificates.parse(der[: size % len(der)])


def test_the_first_certificate_of_a_file_is_found_among_keys_and_words() -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("here")
    pem = b"Words\n" + issued.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes()
    der = certificates.first_of(pem.decode())
    assert der is not None
    expected = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    assert der == expected.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "text", ["", "words", "-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_file_without_a_certificate_has_no_first_one(text: str) -> None:
    assert certificates.first_of(text) is None
