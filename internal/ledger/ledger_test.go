package ledger_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/internal/ledger"
	"github.com/hallpass/hallpass/testenv"
)

// written is a cluster in which two writers wrote some rounds.
func written(t *testing.T) (*testenv.Env, []ledger.Entry) {
	t.Helper()
	env := testenv.Start(t, testenv.Options{})
	l := ledger.Open(t.Context(), ledger.Config{
		Writers: []ledger.Writer{
			{Name: "one", Asker: env.Client("alice"), Owner: env.Client("bob"), Voter: "bob"},
			{Name: "two", Asker: env.Client("alice"), Owner: env.Client("bob"), Voter: "bob"},
		},
		Ask: api.RequestInput{Service: "payments", Permissions: []string{"GET /accounts/**"}, Duration: api.Duration(30 * time.Minute)},
	})
	env.Eventually("each kind of round has been written by each", func() bool {
		done, err := l.Rounds()
		if err != nil {
			t.Fatal(err)
		}
		return done >= 14
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	all, err := l.Close(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return env, all
}

func TestALedgerOfAWholeClusterFindsNothing(t *testing.T) {
	env, all := written(t)
	bob := oneNode(t, env)
	if err := ledger.Check(t.Context(), bob, all); err != nil {
		t.Error(err)
	}
	fetched := 0
	for i := range all {
		if all[i].Live() {
			fetched++
			if err := all[i].CheckFetch(t.Context(), env.Client("alice")); err != nil {
				t.Error(err)
			}
		}
	}
	bob = oneNode(t, env)
	log := readLog(t, bob)
	issued, err := ledger.CheckLog(log, all)
	if err != nil {
		t.Error(err)
	}
	if err := ledger.CheckIssuances(t.Context(), bob, issued); err != nil {
		t.Error(err)
	}
	if fetched < 4 || len(issued) < 2*fetched {
		t.Errorf("%d live grants, %d certificates in the log", fetched, len(issued))
	}
}

// oneNode asks a single node as bob, once it has all there is.
func oneNode(t *testing.T, env *testenv.Env) *api.Client {
	t.Helper()
	client, err := api.NewClient(api.ClientConfig{Servers: env.Servers()[1:2], Identity: env.Folder("bob")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if err := ledger.CatchUp(t.Context(), client, env.Client("bob")); err != nil {
		t.Fatal(err)
	}
	return client
}

func readLog(t *testing.T, client *api.Client) []byte {
	t.Helper()
	log, err := ledger.ReadLog(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// Each lie is one that a cluster which lost something would tell. The ledger is changed rather than
// the cluster, whose log is not to be had otherwise than it is.
func TestALedgerFindsWhatIsNotThere(t *testing.T) {
	env, all := written(t)
	bob := oneNode(t, env)
	log := readLog(t, bob)
	first := func(ok func(e ledger.Entry) bool) int {
		i := slices.IndexFunc(all, ok)
		if i < 0 {
			t.Fatal("no such entry")
		}
		return i
	}
	live := first(ledger.Entry.Live)
	twice := first(func(e ledger.Entry) bool { return e.Live() && len(e.Certificates) > 1 })
	pending := first(func(e ledger.Entry) bool { return e.Cancelled })
	tests := []struct {
		name string
		at   int
		lie  func(e *ledger.Entry)
		want string
	}{
		{"a request is lost", live, func(e *ledger.Entry) { e.ID = "0199aaaa-0000-7000-8000-000000000000" }, "the request is not there"},
		{"it is another request", live, func(e *ledger.Entry) { e.Reason = "something else" }, "for "},
		{"a decision is lost", pending, func(e *ledger.Entry) { e.Decision = "approve" }, "its decisions are"},
		{"a decision is another's", live, func(e *ledger.Entry) { e.Voter = "carol" }, "its decisions are"},
		{"another thing was approved", live, func(e *ledger.Entry) { e.Hash = strings.Repeat("0", 64) }, "its decisions are"},
		{"a revocation is lost", live, func(e *ledger.Entry) { e.Revoking, e.Revoked = true, true }, "the grant is active"},
		{"a grant is revoked by nobody", first(func(e ledger.Entry) bool { return e.Revoked }), func(e *ledger.Entry) { e.Revoking, e.Revoked = false, false }, "the grant is revoked"},
		{"a withdrawal is lost", live, func(e *ledger.Entry) { e.Cancelled = true }, "the request is approved"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doctored := slices.Clone(all)
			tt.lie(&doctored[tt.at])
			err := ledger.Check(t.Context(), bob, doctored)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want one that says %q", err, tt.want)
			}
		})
	}
	t.Run("in the log", func(t *testing.T) { lieInTheLog(t, log, all, live) })
	t.Run("in the record", func(t *testing.T) {
		issued, err := ledger.CheckLog(log, all)
		if err != nil {
			t.Fatal(err)
		}
		if err := ledger.CheckIssuances(t.Context(), bob, append(issued, ledger.Issued{Serial: "1", Grant: all[live].ID})); err == nil {
			t.Error("a certificate that the record lacks is not missed")
		}
		renewed := slices.IndexFunc(issued, func(i ledger.Issued) bool { return i.Grant == all[twice].ID })
		if err := ledger.CheckIssuances(t.Context(), bob, slices.Delete(issued, renewed, renewed+1)); err == nil {
			t.Error("a certificate that only the record has is not found")
		}
	})
}

func lieInTheLog(t *testing.T, log []byte, all []ledger.Entry, live int) {
	lines := bytes.SplitAfter(log, []byte("\n"))
	lineOf := func(parts ...string) int {
		i := slices.IndexFunc(lines, func(line []byte) bool {
			return !slices.ContainsFunc(parts, func(p string) bool { return !bytes.Contains(line, []byte(p)) })
		})
		if i < 0 {
			t.Fatalf("no line with %v", parts)
		}
		return i
	}
	create := lineOf(`"kind":"request.create"`, all[live].ID)
	decide := lineOf(`"kind":"request.decide"`, all[live].ID)
	issue := lineOf(`"kind":"grant.issue"`, all[live].ID)
	serial := all[live].Certificates[0].Leaf.SerialNumber.Text(16)
	another := bytes.ReplaceAll(bytes.ReplaceAll(lines[issue], []byte(`"tbs_hash":"`), []byte(`"tbs_hash":"0`)), []byte(`"command":"`), []byte(`"command":"0`))
	for _, tt := range []struct {
		name string
		log  [][]byte
		want string
	}{
		{"a request is not in it", slices.Delete(slices.Clone(lines), create, create+1), "request.create of " + all[live].ID},
		{"a decision is not in it", slices.Delete(slices.Clone(lines), decide, decide+1), "request.decide of " + all[live].ID},
		{"a request is in it twice", append(slices.Clone(lines), lines[create]), "was asked before"},
		{"a command is in it twice", append(slices.Clone(lines), lines[decide]), "was applied before"},
		{"a certificate is not in it", slices.Delete(slices.Clone(lines), issue, issue+1), "certificate " + serial},
		{"a serial has two certificates", append(slices.Clone(lines), another), "serial " + serial + " was minted before"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ledger.CheckLog(bytes.Join(tt.log, nil), all)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want one that says %q", err, tt.want)
			}
		})
	}
}
