#!/usr/bin/python3
"""Goes through DCOM with impacket and the tickets in KRB5CCNAME: dcom.py HOST USER. It prints what each step came to, as JSON."""
import json
import os
import sys

from impacket.dcerpc.v5 import dcomrt, transport
from impacket.dcerpc.v5.dtypes import GUID, HRESULT, LPWSTR, NULL
from impacket.uuid import bin_to_string, string_to_bin, uuidtup_to_bin

CLASS = string_to_bin("d99e6e74-fc88-11d0-b498-00a0c90312f3")
D = uuidtup_to_bin(("d99e6e70-fc88-11d0-b498-00a0c90312f3", "0.0"))
D2 = uuidtup_to_bin(("5422fd3a-d4b8-4cef-a12e-e87d4ca22e90", "0.0"))
FACTORY = uuidtup_to_bin(("00000001-0000-0000-c000-000000000046", "0.0"))


class Ping2(dcomrt.DCOMCALL):
    opnum = 9
    structure = (("pwszAuthority", LPWSTR),)


class Ping2Response(dcomrt.DCOMANSWER):
    structure = (("ErrorCode", HRESULT),)


class CreateInstance(dcomrt.DCOMCALL):
    opnum = 3
    structure = (("riid", GUID),)


class CreateInstanceResponse(dcomrt.DCOMANSWER):
    structure = (("ppvObject", dcomrt.PMInterfacePointer), ("ErrorCode", HRESULT))


def ping2(interface):
    call = Ping2()
    call["pwszAuthority"] = "CA\0"
    return interface.request(call, D2, interface.get_iPid())["ErrorCode"]


def main():
    host, user = sys.argv[1:3]
    out = {}

    def step(name, what):
        try:
            out[name] = what()
        except Exception as e:  # noqa: BLE001  every step says what became of it
            out[name] = f"{type(e).__name__}: {e}"

    def alive():
        dce = transport.DCERPCTransportFactory(f"ncacn_ip_tcp:{host}[135]").get_dce_rpc()
        return [b["aNetworkAddr"].rstrip("\0") for b in dcomrt.IObjectExporter(dce).ServerAlive2()]

    step("ServerAlive2", alive)
    conn = dcomrt.DCOMConnection(host, user, "", "LAB.TEST", oxidResolver=False, doKerberos=True)
    scm = dcomrt.IRemoteSCMActivator(conn.get_dce_rpc())
    first = conn.CoCreateInstanceEx(CLASS, D)
    out["RemoteCreateInstance"] = bin_to_string(first.get_iPid())
    remote = dcomrt.IRemUnknown(first)
    second = remote.RemQueryInterface(1, (D2,))
    out["RemQueryInterface"] = bin_to_string(second.get_iPid())
    step("Ping2", lambda: ping2(second))
    step("RemAddRef", lambda: remote.RemAddRef()["ErrorCode"])
    resolver = dcomrt.IObjectExporter(conn.get_dce_rpc())
    oid = first.get_oid()
    step("ComplexPing", lambda: out.setdefault("set", resolver.ComplexPing(0, 0, [oid], [])["pSetId"]) > 0)
    step("SimplePing", lambda: resolver.SimplePing(out["set"])["ErrorCode"])
    step("AddAndDelete", lambda: resolver.ComplexPing(0, 0, [oid], [oid])["ErrorCode"])
    step("UnknownSet", lambda: resolver.SimplePing(12345)["ErrorCode"])
    step("ResolveOxid", lambda: [b["aNetworkAddr"].rstrip("\0") for b in resolver.ResolveOxid(first.get_oxid(), [7])])
    step("ResolveOxid2", lambda: [b["aNetworkAddr"].rstrip("\0") for b in resolver.ResolveOxid2(first.get_oxid(), [7])])
    step("UnknownOxid", lambda: str(resolver.ResolveOxid2(12345, [7])))
    step("RemRelease", lambda: dcomrt.IRemUnknown(second).RemRelease()["ErrorCode"])
    step("Released", lambda: ping2(second))
    step("UnknownClass", lambda: str(scm.RemoteCreateInstance(string_to_bin("01234567-fc88-11d0-b498-00a0c90312f3"), D)))
    step("UnknownInterface", lambda: str(scm.RemoteCreateInstance(CLASS, uuidtup_to_bin(("01234567-fc88-11d0-b498-00a0c90312f3", "0.0")))))

    def factory():
        class_object = scm.RemoteGetClassObject(CLASS, FACTORY)
        call = CreateInstance()
        call["riid"] = D2[:16]
        r = class_object.request(call, FACTORY, class_object.get_iPid())
        return ping2(dcomrt.INTERFACE(class_object.get_cinstance(), b"".join(r["ppvObject"]["abData"]), class_object.get_ipidRemUnknown(), target=host))

    step("RemoteGetClassObject", factory)
    del out["set"]
    print(json.dumps(out))
    sys.stdout.flush()
    os._exit(0)  # whatever timers there are


main()
