package control

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/hallpass/hallpass/approval"
	"github.com/hallpass/hallpass/approval/api"
)

// pace is what a call is counted as.
type pace int

const (
	paceRead pace = iota
	// paceWrite is a call that may end in a command.
	paceWrite
	// paceUrgent is a decision, or takes access away. It has places of its own:
	// whoever floods the cluster with requests must not keep others from
	// deciding, nor an admin from cutting off who floods.
	paceUrgent
	// paceReport is a proxy that tells what it was shown, or anchors its log. All proxies of a service
	// have one identity, and it may have something to ask for, too.
	paceReport
	paces
)

const (
	pathSeen    = "/v1/certificates/seen"
	pathAnchors = "/v1/access/anchors"

	// maxPaced is how many callers a node remembers the pace of. The one not
	// heard for longest is forgotten first, and begins anew.
	maxPaced = 16384
	// burstSeconds is how much of its rate a caller who was quiet may use at once.
	burstSeconds = 5
)

// paceOf says what a call is counted as.
func paceOf(r *http.Request) pace {
	if r.Method != http.MethodPost {
		return paceRead
	}
	path := r.URL.Path
	if path == pathSeen || path == pathAnchors {
		return paceReport
	}
	for _, end := range []string{"/decisions", "/revoke", "/deny", "/subjects/block"} {
		if strings.HasPrefix(path, "/v1/") && strings.HasSuffix(path, end) {
			return paceUrgent
		}
	}
	return paceWrite
}

// pacer bounds how fast each caller may call, and how many writes of all
// callers are under way.
type pacer struct {
	limits Limits

	mu     sync.Mutex
	known  *simplelru.LRU[string, *[paces]*rate.Limiter] // guarded by mu
	writes [paces]int                                    // guarded by mu; under way
	held   [paces]map[string]int                         // guarded by mu; the same, by caller
}

func newPacer(l Limits) *pacer {
	known, err := simplelru.NewLRU[string, *[paces]*rate.Limiter](maxPaced, nil)
	if err != nil {
		panic(err) // a size below one
	}
	p := &pacer{limits: l, known: known}
	for i := range p.held {
		p.held[i] = map[string]int{}
	}
	return p
}

// perSecond is the rate of one caller.
func (p *pacer) perSecond(of pace) int {
	if of == paceRead {
		return p.limits.ReadsPerSecond
	}
	return p.limits.WritesPerSecond
}

// begin counts a call until its end, or says when to make it again. A call that
// is refused costs the caller nothing, so who waits as told gets in.
func (p *pacer) begin(of pace, who string, now time.Time) (end func(), refused *api.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if of != paceRead {
		if p.held[of][who] >= p.limits.WritesPerCaller {
			return nil, tooMany(fmt.Sprintf("%s has %d writes under way at this node already", who, p.held[of][who]), "let some end")
		}
		if p.writes[of] >= p.limits.Writes {
			return nil, overloaded()
		}
	}
	if wait := p.take(of, who, now); wait > 0 {
		refused := api.NewProblem(api.CodeLimit, fmt.Sprintf("%s makes more than %d such calls a second", who, p.perSecond(of)),
			"wait for as long as Retry-After says")
		refused.RetryAfter = wait
		return nil, refused
	}
	if of == paceRead {
		return func() {}, nil
	}
	p.writes[of]++
	p.held[of][who]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.writes[of]--
		if p.held[of][who]--; p.held[of][who] == 0 {
			delete(p.held[of], who)
		}
	}, nil
}

// take counts one call, or says for how long there is no place for it, in whole
// seconds. Call with mu held.
func (p *pacer) take(of pace, who string, now time.Time) time.Duration {
	limiters, ok := p.known.Get(who)
	if !ok {
		limiters = new([paces]*rate.Limiter)
		p.known.Add(who, limiters)
	}
	l := limiters[of]
	if l == nil {
		r := p.perSecond(of)
		l = rate.NewLimiter(rate.Limit(r), r*burstSeconds)
		limiters[of] = l
	}
	if l.AllowN(now, 1) {
		return 0
	}
	missing := (1 - l.TokensAt(now)) / float64(l.Limit())
	return time.Duration(max(math.Ceil(missing), 1)) * time.Second
}

// overloaded is what is said to writers while too many others write.
func overloaded() *api.Problem {
	p := api.NewProblem(api.CodeUnavailable, "too many writes are under way at this node", "wait for as long as Retry-After says")
	p.RetryAfter = time.Second
	return p
}

// paced is begin for a call of this node. A person with many identities has one
// pace. What a follower hands on is counted there and at the leader, so that
// calling every node in turn gives nobody more of the leader.
func (n *node) paced(r *http.Request, who *caller) (end func(), refused *api.Problem) {
	name := who.id.String()
	_ = n.local(func(s approval.State) error { // a state that cannot be read has no persons
		if person := s.PersonName(who.id); person != "" {
			name = "person " + person
		}
		return nil
	})
	end, refused = n.pacer.begin(paceOf(r), name, time.Now())
	if refused != nil {
		n.metrics.refused(r.Context(), refused.Code)
	}
	return end, refused
}
