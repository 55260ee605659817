package grant_test

import (
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hallpass/hallpass/grant"
)

// From what a requester types to the SPIFFE ID of the certificate, and back.
func Example() {
	scope, err := grant.ParseScope("payments", []string{"POST /refunds/*", "HEAD /accounts/**", "GET /accounts/**"})
	if err != nil {
		fmt.Println(err)
		return
	}
	td := spiffeid.RequireTrustDomainFromString("grants.acme.test")
	alice := spiffeid.RequireFromString("spiffe://acme.test/user/alice")
	id, err := grant.NewID(td, scope, alice, "0199f3a0-5c1e-7a3b-9c4d-2e5f60718293")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(id)

	back, err := grant.ParseID(id.String(), td)
	fmt.Println(back == id, err)
	fmt.Println(back.Subject())
	fmt.Println(back.Scope().Words())
	// Output:
	// spiffe://grants.acme.test/v1/payments/_can/http/GET.HEAD/accounts/_rest/_and/http/POST/refunds/_any/_for/acme.test/user/alice/_id/0199f3a0-5c1e-7a3b-9c4d-2e5f60718293
	// true <nil>
	// spiffe://acme.test/user/alice
	// at payments:
	//   may GET or HEAD anything below /accounts/
	//   may POST /refunds/* (each * is one segment)
}

// A proxy reads the target once, answers 400 if it is ambiguous and 403 if the scope does not
// have it, and forwards the very bytes that it matched.
func ExampleMatcher_HTTP() {
	scope, err := grant.ParseScope("payments", []string{"GET,HEAD /accounts/**", "POST /refunds/*"})
	if err != nil {
		fmt.Println(err)
		return
	}
	matcher := scope.Matcher()
	serve := func(method, target string) {
		path, err := grant.ParsePath(target, grant.PathOptions{})
		if err != nil {
			fmt.Println(400, errors.Is(err, grant.ErrAmbiguousPath))
			return
		}
		if by, ok := matcher.HTTP(method, &path); ok {
			fmt.Printf("forward %s by %q\n", path.Raw(), by)
			return
		}
		missing, err := grant.HTTPPermission(method, path)
		fmt.Printf("403, ask for %q %v\n", missing, err)
	}
	serve("GET", "/accounts/17?page=2")
	serve("GET", "/accounts")
	serve("POST", "/refunds/a%20b")
	serve("POST", "/refunds/a%20b/c")
	serve("GET", "/accounts/%2e%2e/admin")
	// Output:
	// forward /accounts/17 by "GET,HEAD /accounts/**"
	// 403, ask for "GET /accounts" <nil>
	// forward /refunds/a%20b by "POST /refunds/*"
	// 403, ask for "POST /refunds/a%20b/c" <nil>
	// 400 true
}

// The text form is read leniently in order and escaping, and written in one way.
func ExampleParsePermission() {
	for _, text := range []string{
		"HEAD,GET /r%c3%a9sum%c3%a9",
		`postgres "orders" as "read only"`,
		"grpc bank.Ledger/*",
		"tcp",
		"get /accounts",
		"GET /accounts/{id}",
		"GET /accounts/../admin",
	} {
		p, err := grant.ParsePermission(text)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(p)
	}
	// Output:
	// GET,HEAD /r%C3%A9sum%C3%A9
	// postgres orders as "read only"
	// grpc bank.Ledger/*
	// tcp
	// bad permission "get /accounts": at byte 0: "get" is no method; methods are upper-case: write "GET"; the other kinds are grpc, postgres and tcp
	// bad permission "GET /accounts/{id}": at byte 14: a placeholder in braces; write "*" for one segment, or "%7B" for the character
	// bad permission "GET /accounts/../admin": at byte 14: dot segment; no request with it is ever forwarded
}

func ExamplePermission_Covers() {
	rule, _ := grant.ParsePermission("GET,HEAD /accounts/**")
	for _, text := range []string{"GET /accounts/*/entries", "POST /accounts/1", "* /accounts/", "GET /*/1"} {
		asked, _ := grant.ParsePermission(text)
		fmt.Printf("%-25s covered %-5t overlaps %t\n", asked, rule.Covers(asked), rule.Overlaps(asked))
	}
	// Output:
	// GET /accounts/*/entries   covered true  overlaps true
	// POST /accounts/1          covered false overlaps false
	// * /accounts/              covered false overlaps true
	// GET /*/1                  covered false overlaps true
}

func ExamplePermission_Words() {
	for _, text := range []string{"GET /", "DELETE,GET,PUT /pages/*/", "* /**", "grpc bank.Ledger/*", `postgres "my db" as readonly`, "tcp"} {
		p, _ := grant.ParsePermission(text)
		fmt.Println(p.Words())
	}
	// Output:
	// may GET exactly /
	// may DELETE, GET or PUT /pages/*/ (each * is one segment)
	// may use any method on anything below /
	// may call any gRPC method of bank.Ledger
	// may open the Postgres database "my db" as role readonly
	// may open TCP connections and send anything over them
}

func ExampleServicePrefix() {
	td := spiffeid.RequireTrustDomainFromString("grants.acme.test")
	fmt.Println(grant.ServicePrefix(td, "payments"))
	// Output:
	// spiffe://grants.acme.test/v1/payments/
}
