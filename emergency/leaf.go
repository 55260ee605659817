package emergency

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hallpass/hallpass/grant"
)

const (
	// MaxLife is how long an emergency grant lives at the most.
	MaxLife = time.Hour
	// Backdate is how far an emergency certificate begins before it is made: clocks
	// are not compared while there is no cluster.
	Backdate = time.Minute
)

// ErrLimits is returned when a certificate is beyond what an emergency issuer may
// make.
var ErrLimits = errors.New("beyond the limits of an emergency certificate")

// CheckLeaf refuses a certificate of the grant with this id that lives longer than
// MaxLife, or was not made when its id was: see Until.
func CheckLeaf(grantID string, notBefore, notAfter time.Time) error {
	made, err := made(grantID)
	if err != nil {
		return err
	}
	switch life, late := notAfter.Sub(notBefore), made.Sub(notBefore); {
	case life <= 0 || life > MaxLife+Backdate:
		return fmt.Errorf("%w: it would live for %s, and %s is the most", ErrLimits, life-Backdate, MaxLife)
	case late < 0 || late > 2*Backdate:
		// An id of another time would outlive a revocation by id.
		return fmt.Errorf("%w: the grant's id is of %s, and the certificate begins at %s",
			ErrLimits, made.UTC().Format(time.RFC3339), notBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// Until is a moment at which each certificate that CheckLeaf takes of a grant with
// this id has ended.
func Until(grantID string) (time.Time, error) {
	made, err := made(grantID)
	return made.Add(MaxLife + Backdate), err
}

// made reads the time in a UUIDv7: milliseconds in its first 48 bits.
func made(grantID string) (time.Time, error) {
	if err := grant.ValidGrantID(grantID); err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", ErrLimits, err)
	}
	ms, err := strconv.ParseUint(grantID[:8]+grantID[9:13], 16, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", ErrLimits, err)
	}
	return time.UnixMilli(int64(ms)), nil
}

// isHash reports whether s is a SHA-256 in lower-case hex.
func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && hex.EncodeToString(b) == s
}
