package approval

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"sync"
	"time"
)

// made keeps certificates of the tests: signing is slow, and, since keys come
// from their names and signatures are deterministic, the same each time.
var made sync.Map

func once[T any](name string, make func() T) T {
	if v, ok := made.Load(name); ok {
		return v.(T)
	}
	v := make()
	made.Store(name, v)
	return v
}

// testKey is a key that its name makes.
func testKey(name string) *ecdsa.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:])
	if err != nil {
		panic(err)
	}
	return key
}

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func domainOf(role Role) string {
	if role == RoleGrant {
		return "grants.acme.test"
	}
	return "acme.test"
}

// testRoot is the nth root of a role's trust domain.
func testRoot(role Role, n int) pair {
	name := fmt.Sprintf("%s root %d", domainOf(role), n)
	return once(name, func() pair {
		key := testKey(name)
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
			NotBefore: epochStart.Add(-time.Hour), NotAfter: epochStart.AddDate(10, 0, 0),
			URIs: []*url.URL{{Scheme: "spiffe", Host: domainOf(role)}},
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		return pair{signed(c, c, key.Public(), key), key}
	})
}

func signed(c, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	der, err := x509.CreateCertificate(nil, c, parent, pub, key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

// testIssuer is an issuer of a node with the named key, signed by the first root.
func testIssuer(role Role, node, key string, life time.Duration) []byte {
	return issuerBy(testRoot(role, 0), role, node, key, life)
}

func issuerBy(root pair, role Role, node, key string, life time.Duration) []byte {
	name := fmt.Sprintf("%s identity issuer %s", domainOf(role), node)
	if role == RoleGrant {
		name = fmt.Sprintf("%s grants issuer %s", domainOf(role), node)
	}
	return once(fmt.Sprint(root.cert.Subject.CommonName, name, key, life), func() []byte {
		return signed(&x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
			NotBefore: epochStart.Add(-time.Hour), NotAfter: epochStart.Add(life),
			IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		}, root.cert, testKey(key).Public(), root.key).Raw
	})
}

// apiCertificate is one of a node's API.
func apiCertificate(root pair, id, key string, life time.Duration) []byte {
	u, err := url.Parse(id)
	if err != nil {
		panic(err)
	}
	return signed(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: epochStart.Add(-time.Hour), NotAfter: epochStart.Add(life), URIs: []*url.URL{u},
	}, root.cert, testKey(key).Public(), root.key).Raw
}
