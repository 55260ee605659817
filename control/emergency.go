package control

import (
	"context"
	"fmt"
	"strings"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
	"github.com/hallpass/hallpass/ca"
	"github.com/hallpass/hallpass/emergency"
)

// Emergencies implements api.EmergencyBackend. Every person may know what emergency
// issuers there are.
func (b backend) Emergencies(ctx context.Context, call api.Call) (out api.Emergencies, err error) {
	out.Issuers = []api.EmergencyIssuer{}
	err = b.view(ctx, call, func(s approval.State) error {
		e, err := eyesOf(s, call.Caller.ID)
		if err != nil {
			return err
		}
		if err := e.mapped(); err != nil {
			return err
		}
		cluster, err := s.Cluster()
		if err != nil {
			return err
		}
		journals, err := journalsOf(s)
		if err != nil {
			return err
		}
		for _, i := range cluster.Issuers {
			if i.Role == approval.RoleEmergency {
				j := journals[i.ID]
				out.Issuers = append(out.Issuers, api.EmergencyIssuer{Issuer: wireIssuer(i), Imported: j.Count, Head: j.Head, Forked: j.Forked})
			}
		}
		return nil
	})
	return out, err
}

func journalsOf(s approval.State) (map[string]approval.EmergencyJournal, error) {
	all, err := s.EmergencyJournals()
	by := map[string]approval.EmergencyJournal{}
	for _, j := range all {
		by[j.Issuer] = j
	}
	return by, err
}

// RegisterEmergencyIssuer implements api.EmergencyBackend. Whether it is one, and who
// signed it, is decided in Apply.
func (b backend) RegisterEmergencyIssuer(ctx context.Context, call api.Call, in api.EmergencyIssuerInput) (out api.Issuer, err error) {
	certs, err := ca.DecodeCertificates([]byte(in.Issuer))
	if err != nil || len(certs) != 1 {
		return out, b.counted(ctx, api.NewProblem(api.CodeInvalid, "issuer: not one PEM certificate", "send the issuer.crt of the kit"))
	}
	res, err := b.proposeAsAdmin(ctx, call, approval.RegisterEmergency{Issuer: certs[0].Raw})
	if err != nil {
		return out, err
	}
	issuer, ok := res.Object.(approval.Issuer)
	if !ok {
		return out, fmt.Errorf("result is a %T, not an issuer", res.Object)
	}
	return wireIssuer(issuer), nil
}

// ImportEmergencyRecord implements api.EmergencyBackend.
func (b backend) ImportEmergencyRecord(ctx context.Context, call api.Call, in api.EmergencyRecordInput) (out api.EmergencyJournal, err error) {
	if err := b.checkWhole(ctx, call, in); err != nil {
		return out, b.counted(ctx, err)
	}
	res, err := b.proposeAsAdmin(ctx, call, approval.ImportEmergency{Record: []byte(in.Record)})
	if err != nil {
		return out, err
	}
	j, ok := res.Object.(approval.EmergencyJournal)
	if !ok {
		return out, fmt.Errorf("result is a %T, not a journal", res.Object)
	}
	r, err := emergency.ParseRecord([]byte(in.Record))
	if err != nil {
		return out, fmt.Errorf("a record that was taken in: %w", err)
	}
	hash, err := r.Hash()
	if err != nil {
		return out, err
	}
	if j.Forked == r.N && j.ForkHash == hash {
		return out, b.counted(ctx, api.NewProblem(api.CodeConflict,
			fmt.Sprintf("record %d is of another history than the one that was imported: somebody used a copy of the kit, or cut its journal; it is in the audit log now", r.N),
			"hallpass issuer deny "+j.Issuer+", and look into what each journal says"))
	}
	return api.EmergencyJournal{Issuer: j.Issuer, Count: j.Count, Head: j.Head, Forked: j.Forked, New: res.Changed}, nil
}

// checkWhole refuses a journal with fewer records than were imported of it: an older
// copy, or one that somebody has cut. Its records alone would all be known, and
// nobody would notice.
func (b backend) checkWhole(ctx context.Context, call api.Call, in api.EmergencyRecordInput) error {
	r, err := emergency.ParseRecord([]byte(in.Record))
	if err != nil {
		return api.NewProblem(api.CodeInvalid, "record: "+err.Error(), "send a line of the journal as it is")
	}
	if r.N > in.Of {
		return api.NewProblem(api.CodeInvalid, fmt.Sprintf("of: record %d of a journal of %d", r.N, in.Of), "")
	}
	return b.look(ctx, call, func(s approval.State) error {
		journals, err := journalsOf(s)
		if err == nil && in.Of < journals[r.Issuer].Count {
			return api.NewProblem(api.CodeConflict,
				fmt.Sprintf("the journal has %d records, and %d were imported before: it is an older copy, or it was cut", in.Of, journals[r.Issuer].Count),
				"find the whole journal; if there is none, deny the issuer")
		}
		return err
	})
}

// RevokeEmergencyGrant implements api.EmergencyBackend.
func (b backend) RevokeEmergencyGrant(ctx context.Context, call api.Call, id string, in api.ReasonInput) (out api.EmergencyRevocation, err error) {
	res, err := b.proposeAsAdmin(ctx, call, approval.RevokeEmergency{Grant: id, Reason: in.Reason})
	if err != nil {
		return out, err
	}
	r, ok := res.Object.(approval.EmergencyRevocation)
	if !ok {
		return out, fmt.Errorf("result is a %T, not a revocation", res.Object)
	}
	return api.EmergencyRevocation{Grant: r.Grant, Reason: r.Reason, By: r.By, At: r.At.Time(), Until: r.Until.Time()}, nil
}

// checkJournals warns of emergency issuers with two histories, until they are denied.
func (n *node) checkJournals() Finding {
	const what = "emergency"
	var forked []string
	err := n.local(func(s approval.State) error {
		journals, err := s.EmergencyJournals()
		for _, j := range journals {
			if j.Forked > 0 && !n.custody.get().denied[j.Issuer] {
				forked = append(forked, fmt.Sprintf("%s (from record %d on)", j.Issuer, j.Forked))
			}
		}
		return err
	})
	switch {
	case err != nil:
		return Finding{what, statusOK, ""} // there is no state yet: other findings say so
	case len(forked) > 0:
		return Finding{what, statusWarn, clip("journals with two histories were brought: a copy of a kit was used, or a journal was cut; deny "+
			strings.Join(forked, ", "), 1024)}
	}
	return Finding{what, statusOK, ""}
}
