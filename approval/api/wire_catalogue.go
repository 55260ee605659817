package api

import "context"

// MaxServices is how many services a page of the catalogue has at most.
const MaxServices = 100

// MaxBundles is how many bundles a request may name.
const MaxBundles = 8

// Service is one of the catalogue, as the caller sees it.
type Service struct {
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Tier        string            `json:"tier,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Owners      []string          `json:"owners" doc:"whom to talk to: group:NAME and person:NAME; it gives them no right"`
	Permissions []string          `json:"permissions" doc:"those of the rules that let the caller ask; sorted, at most 100"`
	Bundles     []ServiceBundle   `json:"bundles" doc:"those that the caller could ask for"`
}

// ServiceBundle is permissions of a service under one name.
type ServiceBundle struct {
	Name        string   `json:"name" doc:"what a request asks for it by; unique at its service"`
	Description string   `json:"description,omitempty"`
	Permissions []string `json:"permissions" doc:"what it stands for when a request is made"`
}

// ServiceList is a page of services, in the order of their names.
type ServiceList struct {
	Services []Service `json:"services"`
	Next     string    `json:"next,omitempty" doc:"cursor of the next page"`
}

// ServiceFilter selects services. The zero value selects all.
type ServiceFilter struct {
	Name  string // of one service
	Query string // words, each of which a service's entry must hold
	Page
}

// CatalogueBackend serves /v1/services.
type CatalogueBackend interface {
	// Services MUST tell a caller of what rules let that caller ask for, and of
	// nothing else: not by a result, a number of results, or a cursor.
	Services(ctx context.Context, call Call, f ServiceFilter) (ServiceList, error)
}

type servicesInput struct {
	Name   string `query:"name" maxLength:"63" doc:"this service alone"`
	Query  string `query:"query" maxLength:"200" doc:"words: a service whose name, description, labels, owners or bundles hold each of them, in any case"`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" doc:"absent means 100"`
	Cursor string `query:"cursor" maxLength:"63" doc:"next of the page before"`
	Stale  bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
}

func (h *Handler) catalogueRoutes(r *registrar) {
	b := h.backend
	get(r, "listServices", "/v1/services", "Services at which a rule lets the caller ask for something, and what, by name",
		func(ctx context.Context, in *servicesInput) (ServiceList, error) {
			return b.Services(ctx, callFrom(ctx, in.Stale), ServiceFilter{Name: in.Name, Query: in.Query, Page: Page{Limit: in.Limit, Cursor: in.Cursor}})
		})
}

// Services lists a page of what the caller may ask for.
func (c *Client) Services(ctx context.Context, f ServiceFilter, opts ...CallOption) (out ServiceList, err error) {
	q := f.query()
	set(q, "name", f.Name)
	set(q, "query", f.Query)
	err = c.get(ctx, "/v1/services", q, &out, opts)
	return out, err
}
