package console

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// API is what the console needs of the cluster, as one person. *api.Client is one.
type API interface {
	WhoAmI(ctx context.Context, opts ...api.CallOption) (api.WhoAmI, error)
	Persons(ctx context.Context, opts ...api.CallOption) (api.Persons, error)
	Groups(ctx context.Context, opts ...api.CallOption) (api.Groups, error)
	Policy(ctx context.Context, opts ...api.CallOption) (api.Policy, error)
	Cluster(ctx context.Context, opts ...api.CallOption) (api.Cluster, error)
	Requests(ctx context.Context, f api.Filter, opts ...api.CallOption) (api.RequestList, error)
	Request(ctx context.Context, id string, opts ...api.CallOption) (api.Request, error)
	DryRun(ctx context.Context, in api.RequestInput, opts ...api.CallOption) (api.DryRun, error)
	CreateRequest(ctx context.Context, in api.RequestInput, opts ...api.CallOption) (api.Request, error)
	DecideRequest(ctx context.Context, id string, in api.DecisionInput, opts ...api.CallOption) (api.Request, error)
	CancelRequest(ctx context.Context, id string, opts ...api.CallOption) (api.Request, error)
	CloseReview(ctx context.Context, id, finding string, opts ...api.CallOption) (api.Request, error)
	OpenReviews(ctx context.Context, f api.Filter, opts ...api.CallOption) (api.RequestList, error)
	Services(ctx context.Context, f api.ServiceFilter, opts ...api.CallOption) (api.ServiceList, error)
	Grants(ctx context.Context, f api.Filter, opts ...api.CallOption) (api.GrantList, error)
	Grant(ctx context.Context, id string, opts ...api.CallOption) (api.Grant, error)
	RevokeGrant(ctx context.Context, id, reason string, opts ...api.CallOption) (api.Grant, error)
	Changes(ctx context.Context, state string, p api.Page, opts ...api.CallOption) (api.ChangeList, error)
	Change(ctx context.Context, id string, opts ...api.CallOption) (api.Change, error)
	DecideChange(ctx context.Context, id string, in api.ChangeDecisionInput, opts ...api.CallOption) (api.Change, error)
	CancelChange(ctx context.Context, id string, opts ...api.CallOption) (api.Change, error)
	AuditEntries(ctx context.Context, from uint64, limit int, opts ...api.CallOption) (api.AuditEntries, error)
	AuditCheckpoint(ctx context.Context, opts ...api.CallOption) (api.AuditCheckpoint, error)
	InclusionProof(ctx context.Context, index, size uint64, opts ...api.CallOption) (api.InclusionProof, error)
	WatchEvents(ctx context.Context, after uint64, fn func(api.Event) error) error
}

// ErrNoSession is returned when a call belongs to no live session.
var ErrNoSession = errors.New("console: no session")

// Session is a browser that has signed in.
type Session struct {
	// API acts as the session's person, and as nobody else.
	API API
	// Token is in every form of the session, and is known to its pages alone.
	Token string
	// Live ends with the session.
	Live context.Context
	// SignedIn is when the person signed in last, by the wall clock.
	SignedIn time.Time
}

// Sessions says whose a browser's call is. It is what signing in is made of:
// Local is one; a provider that asks an OpenID provider would be another.
type Sessions interface {
	// Session returns the session that r belongs to, or ErrNoSession. It MUST
	// go by what the browser keeps for this host alone, never by the URL, and
	// MUST compare secrets in constant time.
	Session(r *http.Request) (*Session, error)
	// SignIn answers GET, HEAD and POST of /sign-in; show answers with a page.
	// A GET MUST NOT make a session out of nothing but its URL: whatever looks
	// at links before people do would sign in.
	SignIn(w http.ResponseWriter, r *http.Request, show func(SignInPage))
	// SignInAgain has the person of r's session sign in once more, by what the
	// browser alone does not have; the browser then goes on to back, a path of the
	// console. It returns what the person is to do.
	SignInAgain(r *http.Request, back string) (next string)
	// SignOut MUST end the session before it returns.
	SignOut(w http.ResponseWriter, r *http.Request)
}

// SignInPage is what the sign-in page says.
type SignInPage struct {
	Status int
	// Who is as whom one would be signed in.
	Who string
	// Token is posted back as the field "token" by the page's one button; without
	// one there is no button.
	Token string
	// Problem is what is wrong, and Next what to do.
	Problem, Next string
}
