#!/usr/bin/python3
"""Print access.txt: random descriptors, the SIDs of a token, and which rights Samba's access check grants to it.

Each line: descriptor in hexadecimal, SIDs, the granted ones of create child, write property, write DACL, write owner.
Run with the system's python3 (python3-samba) and send the output to access.txt.
"""
import random

from samba import NTSTATUSError
from samba.dcerpc import security
from samba.ndr import ndr_pack
from samba.security import access_check

random.seed(7)
SIDS = ["S-1-1-0", "S-1-5-11", "S-1-5-21-1-2-3-513", "S-1-5-21-1-2-3-1104", "S-1-5-21-1-2-3-1105"]
TRUSTEES = SIDS + ["S-1-3-4"]                     # OWNER RIGHTS
RIGHTS = {"CC": 0x1, "WP": 0x20, "WD": 0x40000, "WO": 0x80000}
LETTERS = list(RIGHTS) + ["RP", "RC", "CR"]


def granted(sd, token, mask):
    try:
        return access_check(sd, token, mask) & mask == mask
    except NTSTATUSError:
        return False


for _ in range(300):
    sddl = "O:%sG:S-1-5-21-1-2-3-513D:" % random.choice(SIDS[2:])
    for _ in range(random.randrange(7)):
        sddl += "(%s;%s;%s;;;%s)" % (random.choice("AAD"), random.choice(["", "", "", "CI", "CIIO"]),
                                     "".join(random.sample(LETTERS, random.randrange(1, 4))), random.choice(TRUSTEES))
    sd = security.descriptor.from_sddl(sddl, security.dom_sid("S-1-5-21-1-2-3"))
    token = security.token()
    sids = random.sample(SIDS, random.randrange(1, 4))
    token.sids = [security.dom_sid(s) for s in sids]
    token.num_sids = len(sids)
    mask = sum(bit for bit in RIGHTS.values() if granted(sd, token, bit))
    print("%s\t%s\t%x" % (ndr_pack(sd).hex(), " ".join(sids), mask))
