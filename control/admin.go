package control

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/raftstore"
)

// Health is what /readyz answers.
type Health struct {
	Ready    bool      `json:"ready"`
	Node     string    `json:"node"`
	Findings []Finding `json:"findings"`
}

// Finding is one thing that was looked at. A node is ready while nothing fails.
type Finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // "ok", "warn" or "fail"
	Detail string `json:"detail,omitempty"`
}

const (
	statusOK   = "ok"
	statusWarn = "warn"
	statusFail = "fail"
)

// Health looks at the node.
func (s *Server) Health() Health { return s.n.health() }

func (n *node) health() Health {
	h := Health{Node: n.node.ID, Findings: []Finding{n.checkStore(), n.checkLeader(), n.checkBootstrap(), n.checkBegun(), n.checkMember(), n.checkApplied(), n.checkFeed(), n.checkClock()}}
	h.Findings = append(h.Findings,
		n.checkIssuer("identity issuer", approval.RoleIdentity),
		n.checkIssuer("grant issuer", approval.RoleGrant),
		n.checkCertificate("api certificate", n.custody.get().api.Leaf),
		n.checkFolder(),
		n.checkRecords(),
		n.checkCosigner(),
		n.checkUncommitted(),
		n.checkJournals(),
		n.checkAccessLogs(),
		n.checkWitnesses(),
		n.checkNotifications(),
		stateFinding(n.store.Status().Differing))
	h.Ready = true
	for _, f := range h.Findings {
		h.Ready = h.Ready && f.Status != statusFail
	}
	return h
}

func (n *node) checkStore() Finding {
	if err := n.store.Err(); err != nil {
		return Finding{"store", statusFail, err.Error()}
	}
	return Finding{"store", statusOK, ""}
}

// checkApplied fails while the node goes through what it missed, or had before it
// was killed: one that is restarted then leaves nobody who can lead at once.
func (n *node) checkApplied() Finding { return appliedFinding(n.store.Status()) }

func appliedFinding(st raftstore.Status) Finding {
	if behind := st.Behind(); behind > 0 {
		return Finding{"applied", statusFail, fmt.Sprintf("%d of %d entries of the log are not in the state yet", behind, st.LastLog)}
	}
	return Finding{"applied", statusOK, ""}
}

// checkRecords warns while this node is no backup of the audit log.
func (n *node) checkRecords() Finding {
	st := n.store.Status()
	if st.RecordsMissing > 0 {
		return Finding{"audit log", statusWarn, fmt.Sprintf(
			"%d of %d entries are missing here and are fetched from the other nodes: take none away", st.RecordsMissing, st.Records)}
	}
	return Finding{"audit log", statusOK, fmt.Sprintf("%d entries", st.Records)}
}

// stateFinding warns while voters have another state than this node, and no majority says whose is wrong.
func stateFinding(differing []string) Finding {
	if len(differing) > 0 {
		return Finding{"state", statusWarn, fmt.Sprintf(
			"%s had another state at the same index: of one of you the state went wrong", strings.Join(differing, " and "))}
	}
	return Finding{"state", statusOK, ""}
}

func (n *node) checkLeader() Finding {
	leader, ok := n.store.Leader()
	if !ok {
		return Finding{"leader", statusFail, "no leader is known here: fewer than a quorum of nodes can be reached"}
	}
	return Finding{"leader", statusOK, leader}
}

// checkMember says whether the node counts.
func (n *node) checkMember() Finding {
	role := n.store.Membership()[n.node.ID]
	switch waiting := n.store.Status().Waiting; {
	case role == raftstore.RoleVoter && waiting == "":
		return Finding{"member", statusOK, string(role)}
	case waiting != "":
		return Finding{"member", statusWarn, "waits " + waiting}
	case role == raftstore.RoleNonvoter:
		return Finding{"member", statusWarn, "is sent the log and has no vote: hallpass cluster promote " + n.node.ID}
	}
	return Finding{"member", statusFail, "not a member of the cluster: hallpass cluster join " + n.node.ID}
}

func (n *node) checkBootstrap() Finding {
	err := n.local(func(s approval.State) error {
		_, err := s.Cluster()
		return err
	})
	switch {
	case errors.Is(err, approval.ErrNotFound):
		detail := "the cluster has not been bootstrapped"
		if waiting := n.store.Status().Waiting; waiting != "" {
			detail += ": this node waits " + waiting
		}
		return Finding{"bootstrap", statusFail, clip(detail, 1024)}
	case err != nil:
		return Finding{"bootstrap", statusFail, err.Error()}
	}
	return Finding{"bootstrap", statusOK, ""}
}

// checkFeed warns when services that demand a fresh feed would refuse.
func (n *node) checkFeed() Finding {
	_, verified, loaded, _ := n.feed.get()
	if !loaded || verified.IsZero() {
		return Finding{"revocation feed", statusWarn, "not confirmed by a quorum yet"}
	}
	if age := n.now().Sub(verified); age > 10*time.Second {
		return Finding{"revocation feed", statusWarn, fmt.Sprintf("last confirmed by a quorum %s ago", age.Round(time.Second))}
	}
	return Finding{"revocation feed", statusOK, ""}
}

// checkCertificate warns at half of a certificate's life, which leaves as long
// again to put the successor in place, and fails at its end.
func (n *node) checkCertificate(what string, c *x509.Certificate) Finding {
	now := n.now()
	left := c.NotAfter.Sub(now)
	detail := "ends at " + c.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case now.Before(c.NotBefore):
		return Finding{what, statusFail, "not valid before " + c.NotBefore.UTC().Format(time.RFC3339)}
	case left <= 0:
		return Finding{what, statusFail, detail}
	case left < c.NotAfter.Sub(c.NotBefore)/2:
		return Finding{what, statusWarn, detail}
	}
	return Finding{what, statusOK, detail}
}

// adminServer serves the machine's own operators.
func (n *node) adminServer(serving context.Context, metrics http.Handler) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		f := n.checkStore()
		status := http.StatusOK
		if f.Status == statusFail {
			status = http.StatusServiceUnavailable
		}
		writeJSON(w, status, f)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		h := n.health()
		status := http.StatusOK
		if !h.Ready {
			status = http.StatusServiceUnavailable
		}
		writeJSON(w, status, h)
	})
	if metrics != nil {
		mux.Handle("GET /metrics", metrics)
	}
	if n.profiles {
		profiles(mux)
	}
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: n.limits.Header, ReadTimeout: n.limits.Header,
		WriteTimeout: 30 * time.Second, IdleTimeout: n.limits.Idle, MaxHeaderBytes: maxHeader,
		ErrorLog:    log.New(handshakeLog{n}, "", 0),
		BaseContext: func(net.Listener) context.Context { return serving },
	}
}

// profiles serves what the node is busy with. The package registers the same with
// http.DefaultServeMux, which no server of ours serves.
func profiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the asker's loss
}
