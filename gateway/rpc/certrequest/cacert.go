package certrequest

import (
	"context"
	"crypto/x509"
	"encoding/binary"

	"github.com/enrollgate/enrollgate/gateway/wcce"
	"github.com/enrollgate/enrollgate/gateway/wcce/hresult"
)

// What GetCACert is asked for ([MS-WCCE] 3.2.1.4.2.2), and which property of the first index that is.
var caCerts = map[uint32]struct{ id, index int32 }{
	0x00000000: {0x0c, -1}, // GETCERT_CASIGCERT
	0x00000001: {0x0f, 0},  // GETCERT_CAXCHGCERT
	0x6363726c: {0x11, -1}, // GETCERT_CURRENTCRL
	0x66696c65: {0x01, 0},  // GETCERT_FILEVERSION
	0x6e616d65: {0x06, 0},  // GETCERT_CANAME
	0x70617265: {0x09, 0},  // GETCERT_PARENTCONFIG
	0x706f6c69: {0x05, 0},  // GETCERT_POLICYVERSION
	0x70726f64: {0x02, 0},  // GETCERT_PRODUCTVERSION
	0x73616e69: {0x07, 0},  // GETCERT_SANITIZEDCANAME
	0x73686172: {0x08, 0},  // GETCERT_SHAREDFOLDER
	0x74797065: {0x0a, 0},  // GETCERT_CATYPE
}

const caInfoID = 0x696e666f // GETCERT_CAINFO

// caCertsByIndex have the index in the two octets below.
var caCertsByIndex = map[uint32]int32{
	0x636c: 0x11, // GETCERT_CRLBYINDEX
	0x6374: 0x0c, // GETCERT_CACERTBYINDEX
	0x6578: 0x04, // GETCERT_EXITVERSIONBYINDEX
	0x736c: 0x14, // GETCERT_CRLSTATEBYINDEX
	0x7374: 0x13, // GETCERT_CACERTSTATEBYINDEX
}

func (m *methods) caCert(ctx context.Context, ca *CA, what uint32) ([]byte, error) {
	if what == caInfoID {
		return caInfo(ca), nil
	}
	if p, ok := caCerts[what]; ok {
		return m.property(ctx, ca, p.id, p.index, int32(properties[p.id-1].kind))
	}
	if id, ok := caCertsByIndex[what>>16]; ok {
		return m.property(ctx, ca, id, int32(what&0xffff), int32(properties[id-1].kind)) //nolint:gosec // 16 bits
	}
	return nil, hresult.New(hresult.InvalidArg, "nothing is called 0x%08x", what)
}

// caInfo is CAINFO ([MS-WCCE] 2.2.2.4).
func caInfo(ca *CA) []byte {
	const size = 40
	advanced, exits, separated := uint32(1), uint32(0), uint32(0)
	var out []byte
	for _, v := range []uint32{size, uint32(ca.caType()), uint32(len(ca.Signing)), 1, exits, propMax, separated, //nolint:gosec // small numbers
		uint32(ca.Required), uint32(len(ca.Agents)), advanced} { //nolint:gosec // small numbers
		out = binary.LittleEndian.AppendUint32(out, v)
	}
	return out
}

// exchange are the properties about the exchange certificate ([MS-WCCE] 3.2.1.4.3.2.15, .16 and .33).
func (m *methods) exchange(ctx context.Context, ca *CA, id int32) ([]byte, error) {
	cert, err := m.backend.Exchange(ctx, ca.Name)
	if err != nil {
		return nil, err
	}
	if id == propExchange {
		return cert.Raw, nil
	}
	signing := ca.newest()
	for i := range ca.Signing { // of those with the key, the newest that is valid
		if s := &ca.Signing[i]; ca.state(s) == dispValid && cert.CheckSignatureFrom(s.Certificate) == nil {
			signing = s
		}
	}
	var crl []byte
	if id == propExchangeCRLChain {
		if crl, err = signing.crl(); err != nil {
			return nil, err
		}
	}
	return message(cert.Raw, append([]*x509.Certificate{cert}, signing.chain()...), crl)
}

// chain is the certificate and what is above it.
func (s *Signing) chain() []*x509.Certificate {
	return append([]*x509.Certificate{s.Certificate}, s.Above...)
}

// sanitized is a sanitized name, which is not shortened ([MS-WCCE] 3.1.1.4.1.1).
func sanitized(name string) string { return wcce.SanitizedName(name) }
