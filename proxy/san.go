package proxy

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
)

// oidSubjectAltName is id-ce-subjectAltName.
func oidSubjectAltName() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 29, 17} }

// Context-specific tags of GeneralName (RFC 5280 §4.2.1.6).
const tagURI = 6

var (
	errNoNames   = errors.New("certificate has no subject alternative name")
	errTwoNames  = errors.New("certificate has two subject alternative name extensions")
	errBrokenSAN = errors.New("certificate's subject alternative name cannot be read")
)

// sanNames are a certificate's names as they stand in its bytes.
type sanNames struct {
	uris   []string
	others int // DNS names, addresses and every other kind
}

// readNames reads the names without net/url in between, which lower-cases a
// scheme, drops an empty fragment and decodes escapes in a host: two spellings
// that read as one name would be two certificates for one scope.
func readNames(cert *x509.Certificate) (sanNames, error) {
	oid := oidSubjectAltName()
	var value []byte
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oid) {
			continue
		}
		if value != nil {
			return sanNames{}, errTwoNames
		}
		value = ext.Value
	}
	if value == nil {
		return sanNames{}, errNoNames
	}
	var seq asn1.RawValue
	if rest, err := asn1.Unmarshal(value, &seq); err != nil || len(rest) > 0 || !seq.IsCompound || seq.Tag != asn1.TagSequence || seq.Class != asn1.ClassUniversal {
		return sanNames{}, errBrokenSAN
	}
	var names sanNames
	for rest := seq.Bytes; len(rest) > 0; {
		var v asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			return sanNames{}, errBrokenSAN
		}
		if v.Class == asn1.ClassContextSpecific && v.Tag == tagURI && !v.IsCompound {
			names.uris = append(names.uris, string(v.Bytes))
		} else {
			names.others++
		}
	}
	return names, nil
}
