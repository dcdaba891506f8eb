#!/usr/bin/python3
"""Enrolls with impacket over ICertPassage ([MS-ICPR]), found by ept_map, with the tickets in KRB5CCNAME:
icpr.py HOST USER CA TEMPLATE REQUEST.der [LEVEL]. It prints port, return value, disposition, request ID, and sizes, as JSON."""
import json
import sys

from impacket.dcerpc.v5 import epm, transport
from impacket.dcerpc.v5.dtypes import DWORD, LPWSTR, ULONG
from impacket.dcerpc.v5.ndr import NDRCALL
from impacket.dcerpc.v5.rpcrt import RPC_C_AUTHN_GSS_NEGOTIATE, RPC_C_AUTHN_LEVEL_PKT_PRIVACY, DCERPCException
from impacket.uuid import uuidtup_to_bin

from blobs import CERTTRANSBLOB

ICPR = uuidtup_to_bin(("91ae6020-9e3c-11cf-8d7c-00aa00c091be", "0.0"))


class CertServerRequest(NDRCALL):
    opnum = 0
    structure = (("dwFlags", DWORD), ("pwszAuthority", LPWSTR), ("pdwRequestId", DWORD), ("pctbAttribs", CERTTRANSBLOB), ("pctbRequest", CERTTRANSBLOB))


class CertServerRequestResponse(NDRCALL):
    structure = (("pdwRequestId", DWORD), ("pdwDisposition", DWORD), ("pctbCert", CERTTRANSBLOB), ("pctbEncodedCert", CERTTRANSBLOB),
                 ("pctbDispositionMessage", CERTTRANSBLOB), ("ErrorCode", DWORD))


def blob(call, name, value):
    call[name]["cb"] = len(value)
    call[name]["pb"] = list(bytes([b]) for b in value)


def main():
    host, user, ca, template, request = sys.argv[1:6]
    level = int(sys.argv[6]) if len(sys.argv) > 6 else RPC_C_AUTHN_LEVEL_PKT_PRIVACY
    binding = epm.hept_map(host, ICPR, protocol="ncacn_ip_tcp")
    rpc = transport.DCERPCTransportFactory(binding)
    rpc.set_credentials(user, "", "LAB.TEST", "", "", "")
    rpc.setRemoteName(host)
    rpc.set_kerberos(True)
    dce = rpc.get_dce_rpc()
    if level > 1:
        dce.set_credentials(user, "", "LAB.TEST", "", "", "")
        dce.set_auth_type(RPC_C_AUTHN_GSS_NEGOTIATE)
        dce.set_auth_level(level)
    dce.connect()
    dce.bind(ICPR)
    out = []
    for _ in range(2):
        call = CertServerRequest()
        call["dwFlags"] = 0
        call["pwszAuthority"] = ca + "\0"
        call["pdwRequestId"] = 0
        blob(call, "pctbAttribs", f"CertificateTemplate:{template}\0".encode("utf-16-le"))
        with open(request, "rb") as f:
            blob(call, "pctbRequest", f.read())
        try:
            r = dce.request(call, checkError=False)
        except DCERPCException as e:
            print(json.dumps({"fault": str(e)}))
            return
        text = b"".join(r["pctbDispositionMessage"]["pb"]).decode("utf-16-le")
        out.append({"port": binding, "return": r["ErrorCode"], "disposition": r["pdwDisposition"], "id": r["pdwRequestId"],
                    "certificate": len(r["pctbEncodedCert"]["pb"] or []), "chain": len(r["pctbCert"]["pb"] or []), "message": text})
    print(json.dumps({"calls": out}))


main()
