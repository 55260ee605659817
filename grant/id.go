package grant

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxIDLength is the longest SPIFFE ID there may be, in bytes (SPIFFE-ID §2.3).
const MaxIDLength = 2048

const (
	scheme  = "spiffe://"
	version = "/v1/"
)

// ID is the SPIFFE ID of a grant: its scope, its subject and its id, spelled
//
//	spiffe://GRANT-TD/v1/SERVICE/_can/PERM[/_and/PERM]…/_for/SUBJECT-TD/SUBJECT-SEG…/_id/GRANT-ID
//
// Two IDs are == exactly if their strings are. The zero ID is invalid.
type ID struct {
	uri     string
	scope   Scope
	subject spiffeid.ID
	grantID string
}

// NewID makes the ID of the grant grantID, a UUIDv7, of scope for subject, in the trust domain
// td of grants. The error is ErrID, and also ErrTooLong beyond MaxIDLength: the request that
// asked for it has to be refused.
//
// NewID takes any subject with a path. That subjects are identities, not grants in their turn,
// is for whoever decides on the grant to see.
func NewID(td spiffeid.TrustDomain, scope Scope, subject spiffeid.ID, grantID string) (ID, error) {
	switch {
	case td.IsZero():
		return ID{}, fmt.Errorf("%w: no trust domain of grants", ErrID)
	case scope.IsZero():
		return ID{}, fmt.Errorf("%w: no scope", ErrID)
	case subject.IsZero() || subject.Path() == "":
		return ID{}, &mistake{ErrID, subject.String(), -1, "a subject without a path", "a subject is an identity, as in spiffe://acme.test/user/alice"}
	}
	if err := ValidGrantID(grantID); err != nil {
		return ID{}, err
	}
	b := append(make([]byte, 0, 256), ServicePrefix(td, scope.service)...)
	b = append(append(b, tokenCan...), '/')
	b = append(b, scope.perms...)
	b = append(append(b, '/'), tokenFor...)
	b = appendIDText(append(b, '/'), subject.TrustDomain().Name())
	for seg := range strings.SplitSeq(subject.Path()[1:], "/") {
		b = appendIDText(append(b, '/'), seg)
	}
	b = append(append(b, '/'), tokenID...)
	b = append(append(b, '/'), grantID...)
	if len(b) > MaxIDLength {
		return ID{}, tooLong(ErrID, "the grant's SPIFFE ID", len(b))
	}
	return ID{uri: string(b), scope: scope, subject: subject, grantID: grantID}, nil
}

// ServicePrefix is what the ID of every grant for service in td begins with, and of no other
// grant: "spiffe://grants.acme.test/v1/payments/". Tools that know nothing of this package
// match by it. For what is no service name it is a prefix of no SPIFFE ID at all: it must never
// be one that is wider than meant.
func ServicePrefix(td spiffeid.TrustDomain, service string) string {
	if ValidService(service) != nil {
		service = "" // and SPIFFE IDs have no empty segment
	}
	return scheme + td.Name() + version + service + "/"
}

// ParseID reads the SPIFFE ID of a grant in the trust domain td. The error is ErrID unless uri
// is the one canonical spelling of one: an unknown version, kind or token, another trust
// domain, or a second spelling of a valid scope refuses the whole ID.
func ParseID(uri string, td spiffeid.TrustDomain) (ID, error) {
	if len(uri) > MaxIDLength {
		return ID{}, tooLong(ErrID, "the SPIFFE ID", len(uri))
	}
	if err := checkStart(uri, td); err != nil {
		return ID{}, err
	}
	c := &cursor{class: ErrID, in: uri, at: len(scheme) + len(td.Name()) + len(version)}
	scope, err := readScope(c)
	if err != nil {
		return ID{}, err
	}
	subject, err := readSubject(c)
	if err != nil {
		return ID{}, err
	}
	grantID, at := c.next()
	if ValidGrantID(grantID) != nil {
		return ID{}, c.fail(at, quoted(grantID)+" is no grant ID", "a UUIDv7 in lower case is expected here")
	}
	if !c.done {
		return ID{}, c.fail(c.at, "more after the grant ID", "the grant ID comes last")
	}
	id, err := NewID(td, scope, subject, grantID)
	if err != nil {
		return ID{}, err
	}
	// Two spellings of one scope would let a tool that compares strings, and one that compares
	// scopes, disagree on what a certificate opens: all but one are refused.
	if id.uri != uri {
		return ID{}, notCanonical(uri, id.uri)
	}
	return id, nil
}

// checkStart sees to scheme, trust domain and version.
func checkStart(uri string, td spiffeid.TrustDomain) error {
	fail := func(at int, what, want string) error { return &mistake{ErrID, uri, at, what, want} }
	if td.IsZero() {
		return fail(-1, "no trust domain to read it in", "name the trust domain of grants")
	}
	rest, ok := strings.CutPrefix(uri, scheme)
	if !ok {
		return fail(0, "not a SPIFFE ID", `it begins with "spiffe://"`)
	}
	domain := td.Name()
	if name, _, _ := strings.Cut(rest, "/"); name != domain {
		return fail(len(scheme), "trust domain "+quoted(name), `grants live in "`+domain+`"`)
	}
	if !strings.HasPrefix(rest[len(domain):], version) {
		return fail(len(scheme)+len(domain), "unknown version", `"/v1/" is expected here`)
	}
	return nil
}

// readScope reads SERVICE/_can/PERM[/_and/PERM]…/_for.
func readScope(c *cursor) (Scope, error) {
	service, at := c.next()
	if ValidService(service) != nil {
		return Scope{}, c.fail(at, quoted(service)+" is no service", "a lower-case DNS label is expected here")
	}
	if err := c.expect(tokenCan); err != nil {
		return Scope{}, err
	}
	var perms []Permission
	for {
		at := c.at
		pp, err := readPermission(c)
		if err != nil {
			return Scope{}, err
		}
		perms = append(perms, Permission{enc: pp.encode()})
		end, endAt := c.next()
		switch end {
		case tokenAnd:
			continue
		case tokenFor:
		default:
			return Scope{}, c.fail(endAt, "found "+quoted(end)+" after the permission at byte "+itoa(at), `"_and" or "_for" is expected here`)
		}
		scope, err := NewScope(service, perms...)
		if err != nil {
			return Scope{}, fmt.Errorf("%w: %w", ErrID, err)
		}
		return scope, nil
	}
}

// readSubject reads SUBJECT-TD/SUBJECT-SEG[/SUBJECT-SEG]…/_id.
func readSubject(c *cursor) (spiffeid.ID, error) {
	at := c.at
	name, err := c.text("the subject's trust domain")
	if err != nil {
		return spiffeid.ID{}, err
	}
	var segs []string
	for c.peek() != tokenID || len(segs) == 0 {
		seg, err := c.text("a segment of the subject")
		if err != nil {
			return spiffeid.ID{}, err
		}
		segs = append(segs, seg)
	}
	c.next()
	subject, err := spiffeid.FromString(scheme + name + "/" + strings.Join(segs, "/"))
	if err != nil {
		return spiffeid.ID{}, c.fail(at, "the subject is no SPIFFE ID: "+err.Error(), "SUBJECT-TD/SUBJECT-SEG is expected here")
	}
	return subject, nil
}

// notCanonical is the error for got, which means the same as want but is spelled otherwise. It
// shows the first segment in which they differ.
func notCanonical(got, want string) error {
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	at := strings.LastIndexByte(got[:i], '/') + 1
	have, _, _ := strings.Cut(got[at:], "/")
	need, _, _ := strings.Cut(want[at:], "/")
	return &mistake{ErrID, got, at, "not canonical: found " + quoted(have), "the one spelling of this scope has " + quoted(need) + " here"}
}

// ValidGrantID returns ErrID unless s is a UUIDv7 in lower case, as in
// "0199f3a0-5c1e-7a3b-9c4d-2e5f60718293".
func ValidGrantID(s string) error {
	const form = "xxxxxxxx-xxxx-7xxx-vxxx-xxxxxxxxxxxx"
	ok := len(s) == len(form)
	for i := 0; ok && i < len(form); i++ {
		switch c := s[i]; form[i] {
		case 'x':
			ok = c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
		case 'v':
			ok = c == '8' || c == '9' || c == 'a' || c == 'b'
		default:
			ok = c == form[i]
		}
	}
	if !ok {
		return &mistake{ErrID, s, -1, "no grant ID", "a grant ID is a UUIDv7 in lower case"}
	}
	return nil
}

// String is the ID as a URI; "" for the zero ID.
func (id ID) String() string { return id.uri }

// SPIFFEID is the ID as go-spiffe has it; zero for the zero ID.
func (id ID) SPIFFEID() spiffeid.ID {
	sid, err := spiffeid.FromString(id.uri)
	if err != nil {
		return spiffeid.ID{} // the zero ID
	}
	return sid
}

// Scope is what the grant opens.
func (id ID) Scope() Scope { return id.scope }

// Subject is whose grant it is.
func (id ID) Subject() spiffeid.ID { return id.subject }

// GrantID is the grant's UUIDv7.
func (id ID) GrantID() string { return id.grantID }

// IsZero tells the zero ID.
func (id ID) IsZero() bool { return id == ID{} }
