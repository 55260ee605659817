//go:build kms

package kms

import (
	"errors"
	"strings"
	"testing"
)

// TestKinds: each kind that the page names is there, and the others are refused by
// name. What a token does is TestKMSPagesRun's.
func TestKinds(t *testing.T) {
	for uri, says := range map[string]string{
		"pkcs11:module-path=/nowhere/x.so;token=a": "could not open PKCS#11",
		"pkcs11:object=a":                          "'token', 'serial' or 'slot-id' are required",
		"awskms:region=us-east-1":                  "",
		"azurekms:name=k;vault=v":                  "",
		"cloudkms:credentials-file=/nowhere.json":  "/nowhere.json",
		"tpmkms:device=/nowhere":                   "",
		"softkms:name=k":                           "its keys are files",
		"yubikey:slot-id=9a":                       "unsupported",
		"https://example.test":                     "unsupported",
	} {
		k, err := Open(uri)
		if err == nil {
			_ = k.Close()
		}
		if says != "" && (err == nil || !strings.Contains(err.Error(), says)) || says == "" && err != nil && strings.Contains(err.Error(), "unsupported") {
			t.Errorf("%s: %v", uri, err)
		}
	}
	if _, err := Open("softkms:name=k"); !errors.Is(err, ErrURI) {
		t.Error(err)
	}
}
