"""Writes onbehalf.der: a PKCS#7 request on behalf of LAB\\bob, as another CMS library (asn1crypto) builds it.

Debian: python3-asn1crypto, python3-cryptography. [MS-WCCE] 3.1.1.4.3.3.1: the name is a signed attribute of the
first signer, the enrollment agent.
"""
import datetime
import hashlib
import sys

from asn1crypto import cms, core, x509 as ax509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier


class Pair(core.Sequence):
    _fields = [("name", core.BMPString), ("value", core.BMPString)]


class Pairs(core.SetOf):
    _child_spec = Pair


cms.CMSAttributeType._map["1.3.6.1.4.1.311.13.2.1"] = "name_value_pair"
cms.CMSAttribute._oid_specs["name_value_pair"] = Pairs


def main(path):
    agent_key = rsa.generate_private_key(65537, 2048)
    user_key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agent")])
    now = datetime.datetime(2026, 1, 1)
    cert = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(agent_key.public_key())
            .serial_number(4711).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=3650))
            .add_extension(x509.ExtendedKeyUsage([ObjectIdentifier("1.3.6.1.4.1.311.20.2.1")]), False)
            .sign(agent_key, hashes.SHA256()))
    csr = (x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
           .add_extension(x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.311.20.2"),
                                                     b"\x1e\x16" + "LabOnBehalf".encode("utf-16-be")), False)
           .sign(user_key, hashes.SHA256()).public_bytes(Encoding.DER))
    signed = cms.CMSAttributes([
        cms.CMSAttribute({"type": "content_type", "values": ["data"]}),
        cms.CMSAttribute({"type": "message_digest", "values": [hashlib.sha256(csr).digest()]}),
        cms.CMSAttribute({"type": "name_value_pair", "values": [Pair({"name": "requestername", "value": "LAB\\bob"})]}),
    ])
    agent = ax509.Certificate.load(cert.public_bytes(Encoding.DER))
    message = cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData({
        "version": "v1", "digest_algorithms": [{"algorithm": "sha256"}],
        "encap_content_info": {"content_type": "data", "content": csr},
        "certificates": [cms.CertificateChoices({"certificate": agent})],
        "signer_infos": [{
            "version": "v1",
            "sid": cms.SignerIdentifier({"issuer_and_serial_number": {"issuer": agent.issuer, "serial_number": agent.serial_number}}),
            "digest_algorithm": {"algorithm": "sha256"}, "signed_attrs": signed,
            "signature_algorithm": {"algorithm": "rsassa_pkcs1v15"},
            "signature": agent_key.sign(signed.dump(), padding.PKCS1v15(), hashes.SHA256()),
        }],
    })})
    with open(path, "wb") as f:
        f.write(message.dump())


if __name__ == "__main__":
    main(sys.argv[1])
