#!/usr/bin/python3
"""Calls ICertRequestD2 and ICertAdminD2 with impacket, on objects that need no activation, with the tickets in KRB5CCNAME:
com.py request HOST PORT USER CA TEMPLATE REQUEST.der, or com.py admin HOST PORT USER CA REQUEST-ID. It prints what it gets as JSON."""
import json
import sys

from impacket.dcerpc.v5 import transport
from impacket.dcerpc.v5.dcomrt import ORPCTHAT, ORPCTHIS
from impacket.dcerpc.v5.dtypes import DWORD, LONG, LPWSTR, NULL, ULONG
from impacket.dcerpc.v5.ndr import NDRCALL, NDRPOINTER, NDRSTRUCT, NDRUniConformantArray
from impacket.dcerpc.v5.rpcrt import RPC_C_AUTHN_GSS_NEGOTIATE, RPC_C_AUTHN_LEVEL_PKT_PRIVACY
from impacket.uuid import string_to_bin, uuidtup_to_bin

REQUEST2 = uuidtup_to_bin(("5422fd3a-d4b8-4cef-a12e-e87d4ca22e90", "0.0"))
ADMIN2 = uuidtup_to_bin(("7fe0d935-dda6-443f-85d0-1cfb58fe41dd", "0.0"))
OBJECT = string_to_bin("11111111-2222-3333-4444-666666666666")


class Octets(NDRUniConformantArray):
    item = "c"


class POctets(NDRPOINTER):
    referent = (("Data", Octets),)


class CERTTRANSBLOB(NDRSTRUCT):
    structure = (("cb", ULONG), ("pb", POctets))


class CERTVIEWRESTRICTION(NDRSTRUCT):
    structure = (("ColumnIndex", DWORD), ("SeekOperator", LONG), ("SortOrder", LONG), ("pbValue", POctets), ("cbValue", DWORD))


class Restrictions(NDRUniConformantArray):
    item = CERTVIEWRESTRICTION


class Longs(NDRUniConformantArray):
    item = "<L"


class GetCAProperty(NDRCALL):
    opnum = 7
    structure = (("ORPCthis", ORPCTHIS), ("pwszAuthority", LPWSTR), ("PropID", LONG), ("PropIndex", LONG), ("PropType", LONG))


class GetCAPropertyResponse(NDRCALL):
    structure = (("ORPCthat", ORPCTHAT), ("pctbPropertyValue", CERTTRANSBLOB), ("ErrorCode", DWORD))


class Request2(NDRCALL):
    opnum = 6
    structure = (("ORPCthis", ORPCTHIS), ("pwszAuthority", LPWSTR), ("dwFlags", DWORD), ("pwszSerialNumber", LPWSTR), ("pdwRequestId", DWORD),
                 ("pwszAttributes", LPWSTR), ("pctbRequest", CERTTRANSBLOB))


class Request2Response(NDRCALL):
    structure = (("ORPCthat", ORPCTHAT), ("pdwRequestId", DWORD), ("pdwDisposition", DWORD), ("pctbFullResponse", CERTTRANSBLOB),
                 ("pctbEncodedCert", CERTTRANSBLOB), ("pctbDispositionMessage", CERTTRANSBLOB), ("ErrorCode", DWORD))


class ResubmitRequest(NDRCALL):
    opnum = 5
    structure = (("ORPCthis", ORPCTHIS), ("pwszAuthority", LPWSTR), ("dwRequestId", DWORD))


class ResubmitRequestResponse(NDRCALL):
    structure = (("ORPCthat", ORPCTHAT), ("pdwDisposition", DWORD), ("ErrorCode", DWORD))


class OpenView(NDRCALL):
    opnum = 14
    structure = (("ORPCthis", ORPCTHIS), ("pwszAuthority", LPWSTR), ("ccvr", DWORD), ("acvr", Restrictions), ("ccolOut", DWORD), ("acolOut", Longs),
                 ("ielt", DWORD), ("celt", DWORD))


class OpenViewResponse(NDRCALL):
    structure = (("ORPCthat", ORPCTHAT), ("pceltFetched", DWORD), ("pctbResultRows", CERTTRANSBLOB), ("ErrorCode", DWORD))


def octets(value):
    return list(bytes([b]) for b in value)


def content(blob):
    return b"".join(blob["pb"]) if blob["cb"] else b""


def connect(host, port, user, interface):
    rpc = transport.DCERPCTransportFactory(f"ncacn_ip_tcp:{host}[{port}]")
    rpc.set_credentials(user, "", "LAB.TEST", "", "", "")
    rpc.setRemoteName(host)
    rpc.set_kerberos(True)
    dce = rpc.get_dce_rpc()
    dce.set_credentials(user, "", "LAB.TEST", "", "", "")
    dce.set_auth_type(RPC_C_AUTHN_GSS_NEGOTIATE)
    dce.set_auth_level(RPC_C_AUTHN_LEVEL_PKT_PRIVACY)
    dce.connect()
    dce.bind(interface)
    return dce


def call(dce, request):
    request["ORPCthis"]["version"]["MajorVersion"] = 5
    request["ORPCthis"]["version"]["MinorVersion"] = 7
    request["ORPCthis"]["cid"] = b"\x11" * 16
    request["ORPCthis"]["extensions"] = NULL
    return dce.request(request, OBJECT, checkError=False)


def enroll(dce, ca, template, path):
    properties = {}
    for prop, kind in ((6, 4), (10, 1), (12, 3), (15, 3), (29, 4)):
        r = GetCAProperty()
        r["pwszAuthority"], r["PropID"], r["PropIndex"], r["PropType"] = ca + "\0", prop, 0, kind
        a = call(dce, r)
        properties[prop] = [a["ErrorCode"], content(a["pctbPropertyValue"]).hex()]
    r = Request2()
    r["pwszAuthority"], r["dwFlags"], r["pwszSerialNumber"], r["pdwRequestId"] = ca + "\0", 0x100, NULL, 0
    r["pwszAttributes"] = f"CertificateTemplate:{template}\n\0"
    with open(path, "rb") as f:
        der = f.read()
    r["pctbRequest"]["cb"], r["pctbRequest"]["pb"] = len(der), octets(der)
    a = call(dce, r)
    return {"properties": properties, "disposition": a["pdwDisposition"], "id": a["pdwRequestId"], "certificate": content(a["pctbEncodedCert"]).hex()}


def view(dce, ca):
    r = OpenView()
    r["pwszAuthority"], r["ccvr"], r["ccolOut"], r["ielt"], r["celt"] = ca + "\0", 1, 2, 0, 10
    x = CERTVIEWRESTRICTION()
    x["ColumnIndex"], x["SeekOperator"], x["SortOrder"], x["cbValue"], x["pbValue"] = 0x1009, 1, 0, 4, octets(b"\x09\0\0\0")
    r["acvr"] = [x]
    r["acolOut"] = [0x1000, 0x1010]
    a = call(dce, r)
    return {"return": a["ErrorCode"], "fetched": a["pceltFetched"], "rows": content(a["pctbResultRows"]).hex()}


def main():
    what, host, port, user, ca = sys.argv[1:6]
    if what == "request":
        print(json.dumps(enroll(connect(host, port, user, REQUEST2), ca, sys.argv[6], sys.argv[7])))
        return
    dce = connect(host, port, user, ADMIN2)
    out = {"view": view(dce, ca)}
    r = ResubmitRequest()
    r["pwszAuthority"], r["dwRequestId"] = ca + "\0", int(sys.argv[6])
    a = call(dce, r)
    out["disposition"], out["return"] = a["pdwDisposition"], a["ErrorCode"]
    print(json.dumps(out))


main()
