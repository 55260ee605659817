package control

import (
	"testing"

	"go.uber.org/goleak"
)

// A node that has stopped leaves nothing running.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
