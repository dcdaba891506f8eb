#!/usr/bin/python3
"""Activates CCertRequestD and CCertAdminD with impacket and calls ICertRequestD2 and ICertAdminD2, with the tickets in KRB5CCNAME:
com.py request HOST USER CA TEMPLATE REQUEST.der, or com.py admin HOST USER CA REQUEST-ID. It prints what it gets as JSON."""
import json
import os
import sys

from impacket.dcerpc.v5 import dcomrt
from impacket.dcerpc.v5.dcomrt import DCOMANSWER, DCOMCALL
from impacket.dcerpc.v5.dtypes import DWORD, LONG, LPWSTR, NULL
from impacket.dcerpc.v5.ndr import NDRSTRUCT, NDRUniConformantArray
from impacket.uuid import string_to_bin, uuidtup_to_bin

from blobs import CERTTRANSBLOB, POctets

REQUEST = string_to_bin("d99e6e74-fc88-11d0-b498-00a0c90312f3"), uuidtup_to_bin(("d99e6e70-fc88-11d0-b498-00a0c90312f3", "0.0"))
REQUEST2 = uuidtup_to_bin(("5422fd3a-d4b8-4cef-a12e-e87d4ca22e90", "0.0"))
ADMIN = string_to_bin("d99e6e73-fc88-11d0-b498-00a0c90312f3"), uuidtup_to_bin(("d99e6e71-fc88-11d0-b498-00a0c90312f3", "0.0"))
ADMIN2 = uuidtup_to_bin(("7fe0d935-dda6-443f-85d0-1cfb58fe41dd", "0.0"))


class CERTVIEWRESTRICTION(NDRSTRUCT):
    structure = (("ColumnIndex", DWORD), ("SeekOperator", LONG), ("SortOrder", LONG), ("pbValue", POctets), ("cbValue", DWORD))


class Restrictions(NDRUniConformantArray):
    item = CERTVIEWRESTRICTION


class Longs(NDRUniConformantArray):
    item = "<L"


class GetCAProperty(DCOMCALL):
    opnum = 7
    structure = (("pwszAuthority", LPWSTR), ("PropID", LONG), ("PropIndex", LONG), ("PropType", LONG))


class GetCAPropertyResponse(DCOMANSWER):
    structure = (("pctbPropertyValue", CERTTRANSBLOB), ("ErrorCode", DWORD))


class Request2(DCOMCALL):
    opnum = 6
    structure = (("pwszAuthority", LPWSTR), ("dwFlags", DWORD), ("pwszSerialNumber", LPWSTR), ("pdwRequestId", DWORD),
                 ("pwszAttributes", LPWSTR), ("pctbRequest", CERTTRANSBLOB))


class Request2Response(DCOMANSWER):
    structure = (("pdwRequestId", DWORD), ("pdwDisposition", DWORD), ("pctbFullResponse", CERTTRANSBLOB),
                 ("pctbEncodedCert", CERTTRANSBLOB), ("pctbDispositionMessage", CERTTRANSBLOB), ("ErrorCode", DWORD))


class ResubmitRequest(DCOMCALL):
    opnum = 5
    structure = (("pwszAuthority", LPWSTR), ("dwRequestId", DWORD))


class ResubmitRequestResponse(DCOMANSWER):
    structure = (("pdwDisposition", DWORD), ("ErrorCode", DWORD))


class OpenView(DCOMCALL):
    opnum = 14
    structure = (("pwszAuthority", LPWSTR), ("ccvr", DWORD), ("acvr", Restrictions), ("ccolOut", DWORD), ("acolOut", Longs),
                 ("ielt", DWORD), ("celt", DWORD))


class OpenViewResponse(DCOMANSWER):
    structure = (("pceltFetched", DWORD), ("pctbResultRows", CERTTRANSBLOB), ("ErrorCode", DWORD))


def octets(value):
    return list(bytes([b]) for b in value)


def content(blob):
    return b"".join(blob["pb"]) if blob["cb"] else b""


class Object:
    """An object of a class, called by its second interface, which RemQueryInterface gives."""

    def __init__(self, host, user, kind, iid):
        self.connection = dcomrt.DCOMConnection(host, user, "", "LAB.TEST", oxidResolver=False, doKerberos=True)
        first = self.connection.CoCreateInstanceEx(*kind)
        self.iid, self.interface = iid, dcomrt.IRemUnknown(first).RemQueryInterface(1, (iid,))

    def call(self, request):
        """The answer as it is: impacket would raise those with a result."""
        request["ORPCthis"] = self.interface.get_cinstance().get_ORPCthis()
        request["ORPCthis"]["flags"] = 0
        self.interface.connect(self.iid)
        return self.interface.get_dce_rpc().request(request, self.interface.get_iPid(), checkError=False)

    def release(self):
        return dcomrt.IRemUnknown(self.interface).RemRelease()["ErrorCode"]


def enroll(o, ca, template, path):
    properties = {}
    for prop, kind in ((6, 4), (10, 1), (12, 3), (15, 3), (29, 4)):
        r = GetCAProperty()
        r["pwszAuthority"], r["PropID"], r["PropIndex"], r["PropType"] = ca + "\0", prop, 0, kind
        a = o.call(r)
        properties[prop] = [a["ErrorCode"], content(a["pctbPropertyValue"]).hex()]
    r = Request2()
    r["pwszAuthority"], r["dwFlags"], r["pwszSerialNumber"], r["pdwRequestId"] = ca + "\0", 0x100, NULL, 0
    r["pwszAttributes"] = f"CertificateTemplate:{template}\n\0"
    with open(path, "rb") as f:
        der = f.read()
    r["pctbRequest"]["cb"], r["pctbRequest"]["pb"] = len(der), octets(der)
    a = o.call(r)
    return {"properties": properties, "disposition": a["pdwDisposition"], "id": a["pdwRequestId"], "certificate": content(a["pctbEncodedCert"]).hex()}


def view(o, ca):
    r = OpenView()
    r["pwszAuthority"], r["ccvr"], r["ccolOut"], r["ielt"], r["celt"] = ca + "\0", 1, 2, 0, 10
    x = CERTVIEWRESTRICTION()
    x["ColumnIndex"], x["SeekOperator"], x["SortOrder"], x["cbValue"], x["pbValue"] = 0x1009, 1, 0, 4, octets(b"\x09\0\0\0")
    r["acvr"] = [x]
    r["acolOut"] = [0x1000, 0x1010]
    a = o.call(r)
    return {"return": a["ErrorCode"], "fetched": a["pceltFetched"], "rows": content(a["pctbResultRows"]).hex()}


def main():
    what, host, user, ca = sys.argv[1:5]
    if what == "request":
        o = Object(host, user, REQUEST, REQUEST2)
        out = enroll(o, ca, sys.argv[5], sys.argv[6])
    else:
        o = Object(host, user, ADMIN, ADMIN2)
        out = {"view": view(o, ca)}
        r = ResubmitRequest()
        r["pwszAuthority"], r["dwRequestId"] = ca + "\0", int(sys.argv[5])
        a = o.call(r)
        out["disposition"], out["return"] = a["pdwDisposition"], a["ErrorCode"]
    out["released"] = o.release()
    print(json.dumps(out))
    sys.stdout.flush()
    os._exit(0)  # whatever timers there are


main()
