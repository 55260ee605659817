package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// This file is all that knows huma: it turns routes into handlers and into the
// OpenAPI document.

// registrar registers operations.
type registrar struct {
	api     huma.API
	handler *Handler
	problem *huma.Schema
}

// register builds every route on h.mux and returns the OpenAPI document.
func (h *Handler) register() ([]byte, error) {
	format := huma.Format{
		Marshal: func(w io.Writer, v any) error {
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(false) // audit entries go out byte for byte
			return enc.Encode(v)
		},
		Unmarshal: UnmarshalStrict,
	}
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	api := humago.New(h.mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Hallpass control plane", Version: "1",
				Description: "Just-in-time access. The caller is the SPIFFE ID of the connection's client certificate.",
			},
			Components: &huma.Components{
				Schemas:         registry,
				SecuritySchemes: map[string]*huma.SecurityScheme{"mtls": {Type: "mutualTLS", Description: "an identity X509-SVID of the cluster's trust domain"}},
			},
			Security: []map[string][]string{{"mtls": {}}},
		},
		Formats:                      map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers: []huma.Transformer{func(ctx huma.Context, _ string, v any) (any, error) {
			if err, ok := v.(huma.StatusError); ok {
				return h.problem(ctx.Context(), fromHuma(err)), nil
			}
			return v, nil
		}},
	})
	r := &registrar{api: api, handler: h, problem: registry.Schema(reflect.TypeFor[Problem](), true, "Problem")}
	h.routes(r)
	delete(registry.Map(), "ErrorModel") // huma's own errors leave as Problems
	delete(registry.Map(), "ErrorDetail")
	doc, err := json.MarshalIndent(api.OpenAPI(), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	return append(doc, '\n'), nil
}

// fromHuma turns huma's refusals into Problems, and leaves ours.
func fromHuma(err huma.StatusError) error {
	var m *huma.ErrorModel
	if !errors.As(err, &m) {
		return err
	}
	details := make([]string, 0, len(m.Errors))
	for _, d := range m.Errors {
		where := strings.TrimPrefix(strings.TrimPrefix(d.Location, "body."), "query.")
		details = append(details, where+": "+d.Message)
	}
	if len(details) == 0 {
		details = append(details, m.Detail)
	}
	code := CodeInvalid
	switch {
	case m.Status == http.StatusUnsupportedMediaType:
		code = CodeMediaType
	case m.Status >= http.StatusInternalServerError:
		code = CodeInternal
	}
	p := NewProblem(code, strings.Join(details, "; "), "see /openapi.json")
	p.Status = m.Status
	return p
}

func (r *registrar) operation(method, id, path, summary string, status int) huma.Operation {
	op := huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, DefaultStatus: status,
		Tags:         []string{strings.Split(path, "/")[2]},
		MaxBodyBytes: bodyLimit(path) + 1, BodyReadTimeout: -1, // the body is in memory already
		Responses: map[string]*huma.Response{
			"default": {
				Description: "A refusal or an error",
				Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: r.problem}},
			},
		},
	}
	if method == http.MethodPost {
		op.Parameters = []*huma.Param{{
			Name: headerKey, In: "header", Schema: &huma.Schema{Type: huma.TypeString},
			Description: "a repeated POST with this key and body gives the first one's answer; with another body it is refused",
		}}
	}
	return op
}

type output[T any] struct {
	Body T
}

func register[I, O any](r *registrar, op huma.Operation, fn func(context.Context, *I) (O, error)) {
	huma.Register(r.api, op, func(ctx context.Context, in *I) (*output[O], error) {
		out, err := fn(ctx, in)
		if err != nil {
			return nil, r.handler.problem(ctx, err)
		}
		return &output[O]{Body: out}, nil
	})
}

func get[I, O any](r *registrar, id, path, summary string, fn func(context.Context, *I) (O, error)) {
	register(r, r.operation(http.MethodGet, id, path, summary, http.StatusOK), fn)
}

func post[I, O any](r *registrar, id, path, summary string, fn func(context.Context, *I) (O, error)) {
	register(r, r.operation(http.MethodPost, id, path, summary, http.StatusOK), fn)
}

// createRequest registers an operation with two kinds of answer.
func (r *registrar) createRequest(b RequestBackend) {
	op := r.operation(http.MethodPost, "createRequest", "/v1/requests", "Ask for access, or with dry_run what would be needed", http.StatusCreated)
	asking(r, op, func(ctx context.Context, in *postInput[RequestInput]) (any, error) {
		if len(in.Body.Permissions)+len(in.Body.Bundles) == 0 {
			return nil, NewProblem(CodeInvalid, "nothing is asked for: neither permissions nor bundles", "see /v1/services for what there is")
		}
		if in.Body.DryRun {
			return b.DryRun(ctx, callFrom(ctx, false), in.Body)
		}
		return b.CreateRequest(ctx, callFrom(ctx, false), in.Body)
	})
}

// extendGrant registers the other one.
func (r *registrar) extendGrant(b LifeBackend) {
	op := r.operation(http.MethodPost, "extendGrant", "/v1/grants/{id}/extend", "Ask for a grant to live longer, or with dry_run what would be needed", http.StatusCreated)
	asking(r, op, func(ctx context.Context, in *postIDInput[ExtendInput]) (any, error) {
		if in.Body.DryRun {
			return b.DryRunExtend(ctx, callFrom(ctx, false), in.ID, in.Body)
		}
		return b.ExtendGrant(ctx, callFrom(ctx, false), in.ID, in.Body)
	})
}

// asking registers an operation that answers with a Request, or with a DryRun.
func asking[T any](r *registrar, op huma.Operation, fn func(ctx context.Context, in *T) (any, error)) {
	registry := r.api.OpenAPI().Components.Schemas
	schema := func(t reflect.Type) map[string]*huma.MediaType {
		return map[string]*huma.MediaType{"application/json": {Schema: registry.Schema(t, true, "")}}
	}
	op.Responses["201"] = &huma.Response{Description: "The request", Content: schema(reflect.TypeFor[Request]())}
	op.Responses["200"] = &huma.Response{Description: "dry_run: what the policy says", Content: schema(reflect.TypeFor[DryRun]())}
	type out struct {
		Status   int
		Location string `header:"Location"`
		Body     any
	}
	huma.Register(r.api, op, func(ctx context.Context, in *T) (*out, error) {
		v, err := fn(ctx, in)
		if err != nil {
			return nil, r.handler.problem(ctx, err)
		}
		if made, ok := v.(Request); ok {
			return &out{Status: http.StatusCreated, Location: "/v1/requests/" + made.ID, Body: v}, nil
		}
		return &out{Status: http.StatusOK, Body: v}, nil
	})
}

// getRequest registers the one operation that blocks.
func (r *registrar) getRequest(b RequestBackend) {
	op := r.operation(http.MethodGet, "getRequest", "/v1/requests/{id}", "A request, at once or when it has changed", http.StatusOK)
	type out struct {
		Index uint64 `header:"X-Hallpass-Index" doc:"index to wait from"`
		Body  Request
	}
	huma.Register(r.api, op, func(ctx context.Context, in *waitInput) (*out, error) {
		wait, err := in.wait()
		if err != nil {
			return nil, r.handler.problem(ctx, err)
		}
		v, index, err := b.Request(ctx, callFrom(ctx, in.Stale), in.ID, wait)
		if err != nil {
			return nil, r.handler.problem(ctx, err)
		}
		return &out{Index: index, Body: v}, nil
	})
}

// stream registers a GET that answers with server-sent events, besides the JSON
// of T when it has one.
func (r *registrar) describeStream(op huma.Operation, plain *huma.Response) {
	if plain == nil {
		plain = &huma.Response{Description: "OK", Content: map[string]*huma.MediaType{}}
	}
	plain.Content[eventStream] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
	op.Responses["200"] = plain
	r.api.OpenAPI().AddOperation(&op)
}

// revocations and events are served by plain handlers: huma writes one answer,
// a stream is many.
func (h *Handler) streamRoutes(r *registrar) {
	registry := r.api.OpenAPI().Components.Schemas
	op := r.operation(http.MethodGet, "watchRevocations", pathRevocations,
		"The revocation feed: once, or as events \"feed\" and \"heartbeat\"", http.StatusOK)
	r.describeStream(op, &huma.Response{Description: "OK", Content: map[string]*huma.MediaType{
		"application/json": {Schema: registry.Schema(reflect.TypeFor[Feed](), true, "")},
	}})
	op = r.operation(http.MethodGet, "watchEvents", pathEvents,
		"What happens, as far as the caller may see it, as events \"change\"", http.StatusOK)
	op.Parameters = []*huma.Param{
		{Name: "after", In: "query", Description: "go on after the event with this id; 0 is from the first", Schema: &huma.Schema{Type: huma.TypeInteger}},
		{Name: "Last-Event-ID", In: "header", Description: "the same; wins over after. Without either, only what is new", Schema: &huma.Schema{Type: huma.TypeString}},
	}
	r.describeStream(op, nil)
	h.mux.HandleFunc("GET "+pathRevocations, h.serveRevocations)
	h.mux.HandleFunc("GET "+pathEvents, h.serveEvents)
}
