#!/usr/bin/python3
"""Write descriptors.txt: security descriptors as Samba's own parser and packer make them from SDDL.

Run with the system's python3 (Debian: python3-samba):  ./descriptors.py > descriptors.txt
Each line: a name, the SDDL, the self-relative descriptor in hexadecimal; tabs between.
"""
from samba.dcerpc import security
from samba.ndr import ndr_pack

ENROLL = "0e10c968-78fb-11d2-90d4-00c04f79dc55"
AUTO = "a05b8cc2-17bc-4802-a710-e7c15ab866a2"
USER = "bf967aba-0de6-11d0-a285-00aa003049e2"    # object class user
D = "S-1-5-21-1000-2000-3000"
OWNER = "O:%s-519G:%s-519" % (D, D)

DESCRIPTORS = {
    "enroll and autoenroll for a group":
        "D:PAI(OA;;CR;%s;;%s-1105)(OA;;CR;%s;;%s-1105)(A;;LCRPLORC;;;S-1-5-11)" % (ENROLL, D, AUTO, D),
    "enroll only": "D:(OA;;CR;%s;;%s-513)" % (ENROLL, D),
    "write property of the right's GUID is not control access": "D:(OA;;RPWP;%s;;%s-513)" % (ENROLL, D),
    "another right": "D:(OA;;CR;%s;;%s-513)" % (USER, D),
    "all extended rights": "D:(A;;CR;;;%s-512)" % D,
    "object ACE without object type": "D:(OA;;CR;;;%s-512)" % D,
    "generic all": "D:(A;;GA;;;%s-512)" % D,
    "full control of an administrator, without control access": "D:(A;;CCDCLCSWRPWPDTLOSDRCWDWO;;;%s-512)" % D,
    "denied before allowed": "D:(OD;;CR;%s;;%s-1106)(OA;;CR;%s;;%s-1105)" % (ENROLL, D, ENROLL, D),
    "allowed before denied": "D:(OA;;CR;%s;;%s-1105)(OD;;CR;%s;;%s-1106)" % (ENROLL, D, ENROLL, D),
    "deny of all access": "D:(D;;GA;;;%s-1106)(A;;GA;;;%s-1105)" % (D, D),
    "deny of another right": "D:(OD;;CR;%s;;%s-1106)(OA;;CR;%s;;%s-1105)" % (AUTO, D, ENROLL, D),
    "deny of writing": "D:(D;;WPWDWO;;;%s-1105)(OA;;CR;%s;;%s-1105)" % (D, ENROLL, D),
    "inherit-only": "D:(OA;CIIO;CR;%s;;%s-1105)" % (ENROLL, D),
    "inherit-only deny": "D:(D;OICIIO;GA;;;%s-1105)(OA;;CR;%s;;%s-1105)" % (D, ENROLL, D),
    "inherited": "D:AI(OA;CIID;CR;%s;;%s-1105)" % (ENROLL, D),
    "limited to a child class but not inherit-only": "D:(OA;CI;CR;%s;%s;%s-1105)" % (ENROLL, USER, D),
    "inherited object type alone": "D:(OA;CI;CR;;%s;%s-1105)" % (USER, D),
    "owner rights": "D:(OA;;CR;%s;;S-1-3-4)" % ENROLL,
    "empty": "D:P",
    "with a SACL": "D:(OA;;CR;%s;;%s-1105)S:(AU;SA;WD;;;S-1-1-0)" % (ENROLL, D),
    "no DACL": "",
}

for name, sddl in DESCRIPTORS.items():
    sd = security.descriptor.from_sddl(OWNER + sddl, security.dom_sid(D))
    print("\t".join((name, OWNER + sddl, ndr_pack(sd).hex())))
