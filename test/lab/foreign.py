#!/usr/bin/python3
"""Provision the lab's second forest, PART.TEST, offline, and the trust between both.

lab.sh calls this after provision.py, with the same variables. The trusted domain objects are written straight to both
databases, as the LSA server does when an administrator creates a two-way forest trust ([MS-ADTS] 6.1.6.7).
"""
import logging
import os
import sys
import time

import ldb
from samba import dsdb
from samba.auth import system_session
from samba.dcerpc import drsblobs, security
from samba.ndr import ndr_pack
from samba.param import LoadParm
from samba.provision import provision
from samba.samdb import SamDB

LAB_DIR = os.environ["LAB_DIR"]
PART_IP = os.environ["LAB_PART_IP"]
PASSWORD = os.environ["LAB_PASSWORD"]
TRUST_PASSWORD = "Trust-Passw0rd"

# name: (given name, surname, has a mail attribute)
USERS = {
    "paula": ("Paula", "Parker", True),
    "peter": ("Peter", "Porter", True),      # in no group
    "pablo": ("Pablo", "Prado", False),      # no mail
    "svc-read": ("Read", "Only", False),     # the gateway reads accounts as this one
}
COMPUTER = "WS9"
# name: (scope, members); a universal group in a global one would be against the rules
GROUPS = {
    "Mailers": (dsdb.GTYPE_SECURITY_GLOBAL_GROUP, ["paula", "pablo"]),
    "All Mailers": (dsdb.GTYPE_SECURITY_UNIVERSAL_GROUP, ["Mailers"]),
    "Local Mailers": (dsdb.GTYPE_SECURITY_DOMAIN_LOCAL_GROUP, ["All Mailers"]),
}
# The group of the first forest that a group of the second is a member of.
PARTNERS = "Partners"


def account(samdb, name, attrs=()):
    return samdb.search(base=samdb.domain_dn(), attrs=list(attrs),
                        expression="(sAMAccountName=%s)" % ldb.binary_encode(name))[0]


def sid_of(samdb, name):
    return str(samdb.schema_format_value("objectSid", account(samdb, name, ["objectSid"])["objectSid"][0]), "ascii")


def add_accounts(samdb):
    for name, (given, surname, mail) in USERS.items():
        samdb.newuser(name, PASSWORD, useusernameascn=None, givenname=given, surname=surname,
                      mailaddress=name + "@part.test" if mail else None)
        msg = ldb.Message(account(samdb, name).dn)
        msg["e"] = ldb.MessageElement("24", ldb.FLAG_MOD_REPLACE, "msDS-SupportedEncryptionTypes")
        samdb.modify(msg)
    samdb.newcomputer(COMPUTER)
    samdb.setpassword("(sAMAccountName=%s$)" % COMPUTER, PASSWORD)
    msg = ldb.Message(account(samdb, COMPUTER + "$").dn)
    for name, value in (("dNSHostName", COMPUTER.lower() + ".part.test"), ("msDS-SupportedEncryptionTypes", "24"),
                        ("userAccountControl", str(dsdb.UF_WORKSTATION_TRUST_ACCOUNT))):
        msg[name] = ldb.MessageElement(value, ldb.FLAG_MOD_REPLACE, name)
    samdb.modify(msg)
    for name, (kind, members) in GROUPS.items():
        samdb.newgroup(name, grouptype=kind)
        samdb.add_remove_group_members(name, members)


def secret(direction):
    """One password, as the blob of an incoming or outgoing trust ([MS-ADTS] 6.1.6.9.1)."""
    clear = drsblobs.AuthInfoClear()
    password = list(TRUST_PASSWORD.encode("utf-16-le"))
    clear.size, clear.password = len(password), password
    info = drsblobs.AuthenticationInformation()
    # A day ago: Samba goes on with the previous password for a while, and there is none.
    info.LastUpdateTime = int((time.time() - 86400 + 11644473600) * 10000000)
    info.AuthType = 2                                    # TRUST_AUTH_TYPE_CLEAR
    info.AuthInfo = clear
    array = drsblobs.AuthenticationInformationArray()
    array.count, array.array = 1, [info]
    blob = drsblobs.trustAuthInOutBlob()
    blob.count, blob.current = 1, array
    return ndr_pack(blob)


def add_trust(samdb, dns, netbios, sid):
    samdb.add({
        "dn": "CN=%s,CN=System,%s" % (dns, samdb.domain_dn()),
        "objectClass": "trustedDomain", "trustPartner": dns, "flatName": netbios, "securityIdentifier": ndr_pack(security.dom_sid(sid)),
        "trustDirection": "3", "trustType": "2", "trustAttributes": "8", "msDS-SupportedEncryptionTypes": "24",
        "trustAuthIncoming": secret("in"), "trustAuthOutgoing": secret("out"),
    }, controls=["relax:0"])


def main():
    logger = logging.getLogger("provision")
    logger.addHandler(logging.StreamHandler(sys.stdout))
    first = LoadParm()
    first.load(os.path.join(LAB_DIR, "smb.conf"))
    lab = SamDB(url=first.samdb_url(), session_info=system_session(first), lp=first)

    lp = LoadParm()
    smbconf = os.path.join(LAB_DIR, "part", "smb.conf")
    provision(logger, system_session(), smbconf=smbconf, lp=lp, realm="PART.TEST", domain="PART", hostname="dc2", hostip=PART_IP,
              adminpass=PASSWORD, serverrole="active directory domain controller",
              dom_for_fun_level=dsdb.DS_DOMAIN_FUNCTION_2008_R2, dns_backend="SAMBA_INTERNAL", skip_sysvolacl=True, batch_mode=True)
    part = SamDB(url=lp.samdb_url(), session_info=system_session(lp), lp=lp)
    part.transaction_start()
    msg = ldb.Message(account(part, "DC2$").dn)
    msg["spn"] = ldb.MessageElement(["ldap/dc2.part.test", "ldap/dc2"], ldb.FLAG_MOD_ADD, "servicePrincipalName")
    part.modify(msg)
    add_accounts(part)
    add_trust(part, "lab.test", "LAB", lab.get_domain_sid())
    mailers = sid_of(part, "All Mailers")
    part.transaction_commit()

    lab.transaction_start()
    lab.newgroup(PARTNERS, grouptype=dsdb.GTYPE_SECURITY_DOMAIN_LOCAL_GROUP)
    msg = ldb.Message(account(lab, PARTNERS).dn)
    # Samba makes the foreignSecurityPrincipal itself where a member is named by a SID of another forest.
    msg["m"] = ldb.MessageElement("<SID=%s>" % ndr_pack(security.dom_sid(mailers)).hex(), ldb.FLAG_MOD_ADD, "member")
    lab.modify(msg)
    add_trust(lab, "part.test", "PART", part.get_domain_sid())
    lab.transaction_commit()


if __name__ == "__main__":
    main()
