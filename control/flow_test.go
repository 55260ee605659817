package control

import (
	"bytes"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/audit"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/grant"
)

// TestWholeFlow walks one request to its certificate and its end, on a real
// cluster.
func TestWholeFlow(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	ctx := t.Context()
	alice, bob := c.as("user/alice"), c.as("user/bob")

	dry, err := alice.DryRun(ctx, readAccounts())
	must(t, err)
	if !dry.Allowed || dry.Rules[0] != "payments-read" || dry.Require[0].Group != "payments-owners" || time.Duration(dry.MaxDuration) != time.Hour {
		t.Errorf("dry run: %+v", dry)
	}
	r, err := alice.CreateRequest(ctx, readAccounts())
	must(t, err)
	if r.State != api.RequestPending || r.Subject != "spiffe://acme.test/user/alice" || r.Require[0].Given != 0 {
		t.Fatalf("created: %+v", r)
	}

	// Alice is in payments-owners, and approves nothing of her own; nor does
	// she as another of her IDs.
	approve := api.DecisionInput{Decision: "approve", Hash: r.Hash, Comment: "go"}
	for _, who := range []string{"user/alice", "user/alice-laptop"} {
		_, err := c.as(who).DecideRequest(ctx, r.ID, approve)
		wantProblem(t, err, api.CodeDenied)
	}
	_, err = c.as("user/erin").DecideRequest(ctx, r.ID, approve)
	wantProblem(t, err, api.CodeNotFound) // not hers to see
	_, err = bob.DecideRequest(ctx, r.ID, api.DecisionInput{Decision: "approve", Hash: strings.Repeat("0", 64)})
	wantProblem(t, err, api.CodeStale)

	waited := make(chan error, 1)
	go func() {
		got, err := alice.WaitRequest(ctx, r.ID)
		if err == nil && got.State != api.RequestApproved {
			err = api.NewProblem(api.CodeConflict, got.State, "")
		}
		waited <- err
	}()
	r, err = bob.DecideRequest(ctx, r.ID, approve)
	must(t, err)
	if r.State != api.RequestApproved || r.Grant == nil || r.Require[0].Given != 1 {
		t.Fatalf("approved: %+v", r)
	}
	must(t, <-waited)

	csr, _ := newCSR(t)
	cert, err := alice.GrantCertificate(ctx, r.ID, csr)
	must(t, err)
	c.checkCertificate(t, r, cert)
	_, err = bob.GrantCertificate(ctx, r.ID, csr)
	wantProblem(t, err, api.CodeDenied)

	g, err := alice.Grant(ctx, r.ID)
	must(t, err)
	if g.State != api.GrantActive || len(g.Issuances) != 1 || g.Issuances[0].Serial != cert.Serial {
		t.Errorf("grant: %+v", g)
	}
	g, err = alice.RevokeGrant(ctx, r.ID, "")
	must(t, err)
	if g.State != api.GrantReturned {
		t.Errorf("returned: %+v", g)
	}
	_, err = alice.GrantCertificate(ctx, r.ID, csr)
	wantProblem(t, err, api.CodeConflict)
	for _, n := range c.live() {
		c.until("the revocation is on the feed of "+n.ID(), func() bool {
			feed, err := c.at(n, "user/bob").Revocations(ctx)
			must(t, err)
			return len(feed.Grants) == 1 && feed.Grants[0].ID == r.ID && feed.Epoch == 1 && time.Since(feed.VerifiedAt) < time.Minute
		})
	}
	c.checkAudit(t)
	c.check()
}

func (c *cluster) checkCertificate(t *testing.T, r api.Request, cert api.Certificate) {
	t.Helper()
	chain, err := ca.DecodeCertificates([]byte(cert.Certificate))
	must(t, err)
	id, err := grant.ParseID(chain[0].URIs[0].String(), c.manifest.GrantTrustDomain)
	must(t, err)
	if id.GrantID() != r.ID || id.Scope().Service() != "payments" || id.Subject().String() != r.Subject || id.String() != r.Grant.SPIFFEID {
		t.Errorf("certificate says %s", id)
	}
	if chain[0].NotAfter.After(r.Grant.ExpiresAt) || time.Until(chain[0].NotAfter) > 5*time.Minute || !cert.NotAfter.Equal(chain[0].NotAfter) {
		t.Errorf("certificate ends at %s, the grant at %s", chain[0].NotAfter, r.Grant.ExpiresAt)
	}
	if block, _ := pem.Decode([]byte(cert.Certificate)); block == nil || len(chain) != 2 {
		t.Errorf("chain of %d", len(chain))
	}
}

// checkAudit verifies the log over the API with nothing but public keys.
func (c *cluster) checkAudit(t *testing.T) {
	t.Helper()
	ctx, bob := t.Context(), c.as("user/bob")
	head, err := bob.AuditCheckpoint(ctx)
	must(t, err)
	var keys []string
	for _, n := range c.manifest.Nodes {
		keys = append(keys, n.AuditKey)
	}
	verifiers, err := audit.Verifiers(keys...)
	must(t, err)
	point, err := audit.ParseCheckpoint([]byte(head.Checkpoint), verifiers)
	must(t, err)
	var log bytes.Buffer
	for from := uint64(0); ; {
		run, err := bob.AuditEntries(ctx, from, 3)
		must(t, err)
		for _, e := range run.Entries {
			if _, err := audit.ParseEntry(e); err != nil {
				t.Errorf("entry %s: %v", e, err)
			}
			log.Write(e)
			log.WriteByte('\n')
		}
		if from = run.Next; from == 0 || from >= uint64(point.Size) {
			break
		}
	}
	if _, err := audit.Verify(&log, []byte(head.Checkpoint), verifiers); err != nil {
		t.Error(err)
	}
	proof, err := bob.InclusionProof(ctx, 0, head.Size)
	must(t, err)
	if proof.Size != head.Size || len(proof.Hashes) == 0 {
		t.Errorf("inclusion: %+v", proof)
	}
	if _, err := bob.ConsistencyProof(ctx, 1, head.Size); err != nil {
		t.Error(err)
	}
	_, err = bob.InclusionProof(ctx, head.Size+100, 0)
	wantProblem(t, err, api.CodeInvalid)
	_, err = c.as("service/payments").AuditEntries(ctx, 0, 1)
	wantProblem(t, err, api.CodeDenied)
}
