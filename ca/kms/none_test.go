//go:build !kms

package kms

import (
	"errors"
	"testing"
)

func TestPlainBuildSaysWhichOneOpensKMS(t *testing.T) {
	t.Parallel()
	if _, err := Open("pkcs11:token=a"); !errors.Is(err, ErrNoKMS) || Built {
		t.Error(err)
	}
}
