package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

const (
	pathSnapshot = "/v1/cluster/snapshot"
	octets       = "application/octet-stream"

	// snapshotStall is how long a snapshot's reader or sender may stand still.
	snapshotStall = 30 * time.Second
	// snapshotBegin is how long it may take to begin: the state goes to the
	// leader's disk first.
	snapshotBegin = 2 * time.Minute
)

// BackupBackend serves /v1/cluster/snapshot, to admins.
type BackupBackend interface {
	// Snapshot writes the cluster's state, and with bodies the audit log, as of a
	// moment after the call, to w. Before the first byte it MUST have found all
	// that speaks against it.
	Snapshot(ctx context.Context, call Call, bodies bool, w io.Writer) error
}

func (h *Handler) snapshotRoute(r *registrar) {
	op := r.operation(http.MethodGet, "saveSnapshot", pathSnapshot,
		"A snapshot to restore the cluster from: its state and its audit log; for admins", http.StatusOK)
	op.Parameters = []*huma.Param{{
		Name: "audit_bodies", In: "query", Schema: &huma.Schema{Type: huma.TypeBoolean},
		Description: "false leaves the entries of the audit log out, and keeps what they are checked by",
	}}
	op.Responses["200"] = &huma.Response{
		Description: "The snapshot, in the format that hallpass snapshot inspect reads. One that was cut short is known by its end",
		Content:     map[string]*huma.MediaType{octets: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}},
	}
	r.api.OpenAPI().AddOperation(&op)
	h.mux.HandleFunc("GET "+pathSnapshot, h.serveSnapshot)
}

func (h *Handler) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	bodies, err := snapshotQuery(r.URL.RawQuery)
	if err != nil {
		h.Problem(w, r, NewProblem(CodeInvalid, "the query takes audit_bodies once, true or false", "see /openapi.json"))
		return
	}
	call := callFrom(r.Context(), false)
	ctx, cancel := context.WithDeadline(r.Context(), call.Caller.NotAfter)
	defer cancel()
	out := &steadyWriter{w: w, rc: http.NewResponseController(w)}
	err = h.backend.Snapshot(ctx, call, bodies, out)
	switch {
	case err == nil:
	case !out.began:
		h.Problem(w, r, err)
	default:
		h.log.LogAttrs(ctx, slog.LevelWarn, "a snapshot was not sent to its end",
			slog.String("request_id", RequestIDFrom(ctx)), slog.String("error", err.Error()))
		// What the caller has must not look like all there is.
		panic(http.ErrAbortHandler)
	}
}

// snapshotQuery says whether the audit log is to be in a snapshot.
func snapshotQuery(raw string) (bodies bool, err error) {
	query, err := url.ParseQuery(raw)
	if err != nil || len(query) == 0 {
		return true, err
	}
	values := query["audit_bodies"]
	if len(query) != 1 || len(values) != 1 {
		return false, strconv.ErrSyntax
	}
	return strconv.ParseBool(values[0])
}

// steadyWriter is a long answer. Its reader may be slow, and may not stand still.
type steadyWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	began bool
}

// Write implements io.Writer.
func (s *steadyWriter) Write(p []byte) (int, error) {
	if !s.began {
		s.began = true
		s.w.Header().Set("Content-Type", octets)
		s.w.WriteHeader(http.StatusOK)
	}
	_ = s.rc.SetWriteDeadline(time.Now().Add(snapshotStall)) // without one, the server's own timeouts stand
	return s.w.Write(p)
}

// Steady gives w for an answer to r that is passed on: one whose answers take
// longer than others writes for as long as its reader goes on reading.
func Steady(w http.ResponseWriter, r *http.Request) io.Writer {
	if r.URL.Path != pathSnapshot {
		return w
	}
	return &steadyWriter{w: w, rc: http.NewResponseController(w), began: true}
}

// Snapshot writes a snapshot of the cluster to w, and returns how many bytes it
// has. Servers are tried in turn until one begins; what begins is not repeated.
// That it is whole, only reading it shows.
func (c *Client) Snapshot(ctx context.Context, bodies bool, w io.Writer) (n int64, err error) {
	cl := newCall(http.MethodGet, pathSnapshot, nil)
	if !bodies {
		cl.query = url.Values{"audit_bodies": {"false"}}
	}
	cl.sink = func(from io.Reader) error {
		n, err = io.Copy(w, from)
		return err
	}
	err = c.do(ctx, cl, nil)
	return n, err
}

// ErrCutOff is returned when an answer ended before its end.
var ErrCutOff = errors.New("the answer was cut off")

// download is attempt for an answer of any length. It takes as long as it takes,
// and ends when nothing comes any more.
func (c *Client) download(ctx context.Context, server string, cl *call) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(snapshotBegin, cancel)
	defer idle.Stop()
	resp, err := c.send(ctx, server, cl, octets)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return &transportError{cl.method + " " + server + cl.path, err}
		}
		return readProblem(resp, body)
	}
	if err := cl.sink(wakeful{resp.Body, idle}); err != nil {
		return fmt.Errorf("%s %s: %w: %w", cl.method, server+cl.path, ErrCutOff, err)
	}
	return nil
}

// wakeful is a reader whose timer begins anew with each read.
type wakeful struct {
	io.Reader

	idle *time.Timer
}

// Read implements io.Reader.
func (r wakeful) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.idle.Reset(snapshotStall)
	return n, err
}
