"""What the requests of ICertPassage and of the COM interfaces have in common ([MS-WCCE] 2.2.2.2)."""
from impacket.dcerpc.v5.dtypes import ULONG
from impacket.dcerpc.v5.ndr import NDRPOINTER, NDRSTRUCT, NDRUniConformantArray


class Octets(NDRUniConformantArray):
    item = "c"


class POctets(NDRPOINTER):
    referent = (("Data", Octets),)


class CERTTRANSBLOB(NDRSTRUCT):
    structure = (("cb", ULONG), ("pb", POctets))
