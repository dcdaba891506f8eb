#!/usr/bin/python3
"""ICertPassage ([MS-ICPR]) over DCE/RPC, written from the published descriptions ([MS-RPCE], C706), with MIT Kerberos' GSS-API as the
acceptor. What a CA answers comes from the test, by HTTP: python3 server.py PORTFILE URL [ADDRESS]. Nothing but packet privacy is served.
With ADDRESS there is an endpoint mapper too, at port 135 of it."""
import base64, json, os, socket, socketserver, struct, sys, threading, urllib.request

import gssapi
from gssapi.raw import ext_dce
from gssapi.raw.ext_dce import IOV, IOVBufferType

ICPR = bytes.fromhex("2060ae913c9ecf118d7c00aa00c091be") + struct.pack("<I", 0)
NDR = bytes.fromhex("045d888aeb1cc9119fe808002b104860") + struct.pack("<I", 2)
BIND, BIND_ACK, BIND_NAK, ALTER, ALTER_RESP, AUTH3, REQUEST, RESPONSE, FAULT = 11, 12, 13, 14, 15, 16, 0, 2, 3
PRIVACY, HEADER_SIGN = 6, 4


class Gone(Exception):
    pass


class Handler(socketserver.BaseRequestHandler):
    def read(self, n):
        out = b""
        while len(out) < n:
            part = self.request.recv(n - len(out))
            if not part:
                raise Gone()
            out += part
        return out

    def pdu(self):
        head = self.read(16)
        version, minor, kind, flags, drep, length, auth, call = struct.unpack("<BBBB4sHHI", head)
        assert version == 5 and drep[0] == 0x10, head
        return kind, flags, auth, call, head + self.read(length - 16)

    def send(self, kind, call, body, token=b"", pad=0, flags=3):
        trailer = struct.pack("<BBBBI", self.provider, PRIVACY, pad, 0, self.context_id) + token if token else b""
        total = 16 + len(body) + len(trailer)
        self.request.sendall(struct.pack("<BBBB4sHHI", 5, 0, kind, flags, b"\x10\0\0\0", total, len(token), call) + body + trailer)

    def handle(self):
        self.context = gssapi.SecurityContext(usage="accept")
        self.provider, self.context_id, self.sign, self.stub = 0, 0, False, b""
        try:
            while True:
                kind, flags, auth, call, data = self.pdu()
                if kind in (BIND, ALTER):
                    self.bind(kind, flags, auth, call, data)
                elif kind == AUTH3:
                    self.context.step(data[len(data) - auth:])
                elif kind == REQUEST:
                    self.called(flags, auth, call, data)
                else:
                    return
        except Gone:
            pass

    def bind(self, kind, flags, auth, call, data):
        if not auth:
            return self.send(BIND_NAK, call, struct.pack("<HBB", 8, 1, 5))
        self.provider, level, _, _, self.context_id = struct.unpack_from("<BBBBI", data, len(data) - auth - 8)
        if level != PRIVACY:
            return self.send(BIND_NAK, call, struct.pack("<HBB", 8, 1, 5))
        self.sign = bool(flags & HEADER_SIGN)
        count, at, results = data[24], 28, b""
        for _ in range(count):
            _, syntaxes = struct.unpack_from("<HB", data, at)
            abstract, offered = data[at + 4:at + 24], [data[at + 24 + 20 * i:at + 44 + 20 * i] for i in range(syntaxes)]
            at += 24 + 20 * syntaxes
            if abstract == ICPR and NDR in offered:
                results += struct.pack("<HH", 0, 0) + NDR
            elif any(o.startswith(bytes.fromhex("2c1cb76c12984045")) for o in offered):
                results += struct.pack("<HH", 3, 0) + bytes(20)
            else:
                results += struct.pack("<HH", 2, 2) + bytes(20)
        try:
            token = self.context.step(data[len(data) - auth:]) or b""
        except gssapi.exceptions.GSSError as error:
            print("refused:", error, file=sys.stderr, flush=True)
            return self.send(BIND_NAK, call, struct.pack("<HBB", 8, 1, 5))
        port = str(self.server.server_address[1]).encode() + b"\0"
        address = struct.pack("<H", len(port)) + port
        address += bytes(-(len(address)) % 4)
        body = struct.pack("<HHI", 5840, 5840, 0x1234) + address + struct.pack("<BBH", count, 0, 0) + results
        self.send(BIND_ACK if kind == BIND else ALTER_RESP, call, body, token, flags=3 | (HEADER_SIGN if self.sign else 0))

    def called(self, flags, auth, call, data):
        if not auth or not self.context.complete:
            return self.send(FAULT, call, struct.pack("<IHBBII", 0, 0, 0, 0, 5, 0))
        pad = data[len(data) - auth - 6]
        head, trailer, token = data[:24], data[len(data) - auth - 8:len(data) - auth], data[len(data) - auth:]
        kind = IOVBufferType.sign_only if self.sign else IOVBufferType.empty
        iov = IOV((kind, False, head), (IOVBufferType.data, False, data[24:len(data) - auth - 8]), (kind, False, trailer), (IOVBufferType.header, False, token), std_layout=False)
        result = ext_dce.unwrap_iov(self.context, iov)
        assert result.encrypted
        clear = iov[1].value
        self.stub += clear[:len(clear) - pad]
        if not flags & 2:  # more fragments
            return
        stub, self.stub = self.stub, b""
        answer = self.ask(stub)
        if answer is None:
            self.request.close()
            raise Gone()
        limit = 4096
        for at in range(0, len(answer), limit):
            last = at + limit >= len(answer)
            self.respond(call, answer[at:at + limit], (1 if at == 0 else 0) | (2 if last else 0), len(answer))

    def respond(self, call, stub, flags, whole):
        pad = -len(stub) % 16
        body = struct.pack("<IHBB", whole, 0, 0, 0)
        length = 76
        head = struct.pack("<BBBB4sHHI", 5, 0, RESPONSE, flags, b"\x10\0\0\0", 24 + len(stub) + pad + 8 + length, length, call) + body
        trailer = struct.pack("<BBBBI", self.provider, PRIVACY, pad, 0, self.context_id)
        kind = IOVBufferType.sign_only if self.sign else IOVBufferType.empty
        iov = IOV((kind, False, head), (IOVBufferType.data, False, stub + bytes(pad)), (kind, False, trailer), (IOVBufferType.header, True, None), std_layout=False)
        ext_dce.wrap_iov(self.context, iov, confidential=True)
        token = iov[3].value
        assert len(token) == length, len(token)
        self.request.sendall(head + iov[1].value + trailer + token)

    def ask(self, stub):
        flags, pointer = struct.unpack_from("<II", stub)
        at, authority = 8, None
        if pointer:
            _, _, count = struct.unpack_from("<III", stub, at)
            authority = stub[at + 12:at + 12 + 2 * count].decode("utf-16-le").rstrip("\0")
            at += 12 + 2 * count
            at += -at % 4
        request_id, = struct.unpack_from("<I", stub, at)
        at += 4
        blobs = []
        for _ in range(2):
            length, pointer = struct.unpack_from("<II", stub, at)
            at += 8
            value = b""
            if pointer:
                assert struct.unpack_from("<I", stub, at)[0] == length
                value = stub[at + 4:at + 4 + length]
                at += 4 + length
                at += -at % 4
            blobs.append(base64.b64encode(value).decode())
        question = json.dumps({"caller": str(self.context.initiator_name), "flags": flags, "authority": authority, "id": request_id, "attributes": blobs[0], "request": blobs[1]})
        with urllib.request.urlopen(sys.argv[2], question.encode()) as f:
            a = json.load(f)
        if a.get("lost"):
            return None
        out = struct.pack("<II", a.get("id", 0), a.get("disposition", 0))
        for i, name in enumerate(("chain", "certificate", "message")):
            value = base64.b64decode(a.get(name) or "")
            out += struct.pack("<II", len(value), 0x20000 + 4 * i if value else 0)
            if value:
                out += struct.pack("<I", len(value)) + value + bytes(-len(value) % 4)
        return base64.b64decode(a["raw"]) if a.get("raw") else out + struct.pack("<I", a.get("return", 0))


class Mapper(Handler):
    """The endpoint mapper (C706 appendix O): ept_lookup by interface, without security."""

    uuid = bytes.fromhex("0883afe11f5dc91191a408002b14a0fa") + struct.pack("<I", 3)

    def bind(self, kind, flags, auth, call, data):
        assert data[32:52] == self.uuid, data[32:52]
        results = struct.pack("<HH", 0, 0) + NDR
        for _ in range(data[24] - 1):
            results += struct.pack("<HH", 2, 2) + bytes(20)
        body = struct.pack("<HHIH4s", 5840, 5840, 0x4321, 4, b"135\0") + bytes(2) + struct.pack("<BBH", data[24], 0, 0) + results
        self.send(BIND_ACK, call, body)

    def called(self, flags, auth, call, data):
        operation, = struct.unpack_from("<H", data, 22)
        assert operation == 2 and ICPR[:16] in data, operation
        port = self.server.icpr
        floors = [b"\x0d" + ICPR[:18], ICPR[18:], b"\x0d" + NDR[:18], NDR[18:], b"\x0b", bytes(2), b"\x07", struct.pack(">H", port), b"\x09", socket.inet_aton(sys.argv[3])]
        tower = struct.pack("<H", 5) + b"".join(struct.pack("<H", len(f)) + f for f in floors)
        entry = bytes(16) + struct.pack("<III", 0x20000, 0, 1) + bytes(4)
        stub = bytes(20) + struct.pack("<IIII", 1, 500, 0, 1) + entry + struct.pack("<II", len(tower), len(tower)) + tower + bytes(-len(tower) % 4) + bytes(4)
        self.send(RESPONSE, call, struct.pack("<IHBB", len(stub), 0, 0, 0) + stub)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address = True, True


with Server(("127.0.0.1", 0), Handler) as server:
    if len(sys.argv) > 3:
        mapper = Server((sys.argv[3], 135), Mapper)
        mapper.icpr = server.server_address[1]
        threading.Thread(target=mapper.serve_forever, daemon=True).start()
    with open(sys.argv[1] + ".new", "w") as f:
        f.write(str(server.server_address[1]))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    server.serve_forever()
