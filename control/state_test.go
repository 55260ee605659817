package control

import (
	"strings"
	"testing"

	"github.com/hallpass/hallpass/raftstore"
)

func TestAppliedFinding(t *testing.T) {
	if f := appliedFinding(raftstore.Status{LastLog: 5000, Applied: 4990}); f.Status != statusOK {
		t.Errorf("ten are under way: %+v", f)
	}
	if f := appliedFinding(raftstore.Status{LastLog: 50_000, Applied: 4000}); f.Status != statusFail || !strings.Contains(f.Detail, "46000 of 50000") {
		t.Errorf("all since the snapshot is to be applied: %+v", f)
	}
}

func TestStateFinding(t *testing.T) {
	if f := stateFinding(nil); f.Status != statusOK {
		t.Errorf("nobody differs: %+v", f)
	}
	if f := stateFinding([]string{"n2", "n3"}); f.Status != statusWarn || !strings.Contains(f.Detail, "n2 and n3 had another state") {
		t.Errorf("two differ: %+v", f)
	}
}
