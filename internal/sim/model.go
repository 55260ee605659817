package sim

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/hallpass/hallpass/approval/api"
)

// act is what a call does to one access request and the grant that comes of it.
type act string

const (
	create  act = "create"
	approve act = "approve"
	deny    act = "deny"
	cancel  act = "cancel"
	mint    act = "mint"
	revoke  act = "revoke"
	giveUp  act = "return"
	block   act = "block"   // of the request's subject
	unblock act = "unblock" // as the last of the admins who must approve
	look    act = "read"    // the request
	lookAt  act = "read grant"
)

// input is what was asked, output what was answered.
type input struct {
	act     act
	service string
	person  string
	auto    bool // of a request: it needs nobody

	began, ended time.Time // of a block, which ends the grants that have not run out
	against      tense     // of a block: the grant's end, set for each request
}

// tense is where a call lies to the end of a grant.
type tense uint8

const (
	before tense = iota
	around       // so near that clocks which are right may differ
	after
)

type output struct {
	// perhaps is set when nobody knows whether the call had an effect. It then has one if it may, at any time from its
	// beginning on.
	perhaps bool
	code    api.Code // "" when it succeeded
	request string   // state of the request
	grant   string   // state of the grant, "" when there is none or it was not told
	voters  uint8    // whose approvals were told
	issued  []string // serials that were told; of a mint, the one
	serials uint64   // the same as bits, of those that somebody was handed: see item.bits
}

// lapsing is what a state is noted as when it was read so near to its end that clocks which are right may differ.
const lapsing = "lapsing"

// ended is the state of a grant that was revoked or had expired, nobody can say which.
const ended = "ended"

// object is what the model knows of one request.
type object struct {
	known   bool
	request string
	voters  uint8
	grant   string
	serials uint64
	blocked bool
}

func seat(person string) uint8 {
	for i, name := range append(owners(), security()...) {
		if name == person {
			return 1 << i
		}
	}
	return 0
}

func satisfied(service string, voters uint8) bool {
	owner := voters&(seat("bob")|seat("bea")) != 0
	if service != "ledger" {
		return owner
	}
	return owner && voters&(seat("sam")|seat("sue")) != 0
}

// step says whether o can have answered out to in, and what it is then.
func (o object) step(in input, out output) (bool, object) {
	if out.perhaps {
		if ok, next, _ := o.done(in); ok {
			next.serials = o.serials // nobody knows of which certificate
			return true, next
		}
		return true, o
	}
	if in.act == look || in.act == lookAt {
		return o.shown(in, out)
	}
	if out.code != "" {
		return o.refused(in, out)
	}
	ok, next, shows := o.done(in)
	if in.act == mint {
		next.serials |= out.serials
	}
	told := out.request
	if in.act == revoke || in.act == giveUp {
		told = out.grant
	}
	// A repeated call is told what the first attempt came to, as of now: what was pending then may have lapsed since.
	ok = ok && (told == "" || told == shows || told == lapsing || told == api.RequestExpired)
	return ok, next
}

// done is o after a call that succeeded, and what the call then told: the state of the request, or of the grant.
func (o object) done(in input) (ok bool, next object, shows string) {
	next = o
	switch in.act {
	case create:
		next = object{known: true, request: api.RequestPending, blocked: o.blocked, serials: 0}
		if in.auto {
			next.request, next.grant = api.RequestApproved, api.GrantActive
		}
		return !o.known && !o.blocked, next, next.request
	case approve:
		next.voters |= seat(in.person)
		if satisfied(in.service, next.voters) {
			next.request, next.grant = api.RequestApproved, api.GrantActive
		}
		return o.request == api.RequestPending && !o.blocked && o.voters&seat(in.person) == 0, next, next.request
	case deny:
		next.request = api.RequestDenied
		return o.request == api.RequestPending, next, next.request
	case cancel:
		next.request = api.RequestCancelled
		return o.request == api.RequestPending, next, next.request
	case mint:
		return o.grant == api.GrantActive, next, ""
	case revoke, giveUp:
		switch o.grant {
		case api.GrantRevoked, api.GrantReturned:
			return true, o, o.grant
		case ended:
			next.grant = api.GrantRevoked
			return true, next, next.grant
		}
		next.grant = api.GrantRevoked
		if in.act == giveUp {
			next.grant = api.GrantReturned
		}
		return o.grant == api.GrantActive, next, next.grant
	case block:
		next.blocked = true
		if o.grant == api.GrantActive && in.against == before {
			next.grant = api.GrantRevoked
		} else if o.grant == api.GrantActive && in.against == around {
			next.grant = ended
		}
		return true, next, ""
	case unblock:
		next.blocked = false
		return true, next, ""
	default:
		return false, o, ""
	}
}

// refused is o after a call that was refused. What no state of the model forbids says nothing.
func (o object) refused(in input, out output) (bool, object) {
	switch {
	case out.code == api.CodeExpired:
		return o.lapse()
	case out.code != api.CodeConflict:
		return true, o
	}
	switch in.act {
	case approve:
		return o.request != api.RequestPending || o.voters&seat(in.person) != 0, o
	case deny, cancel:
		return o.request != api.RequestPending, o
	case mint:
		return o.grant != api.GrantActive, o
	default:
		return true, o
	}
}

// lapse is o once somebody was told that its time is over.
func (o object) lapse() (bool, object) {
	next := o
	switch {
	case o.request == api.RequestPending:
		next.request = api.RequestExpired
	case o.grant == api.GrantActive, o.grant == ended:
		next.grant = api.GrantExpired
	}
	return next.request == api.RequestExpired || next.grant == api.GrantExpired, next
}

func (o object) shown(in input, out output) (bool, object) {
	if out.code == api.CodeNotFound {
		return !o.known || in.act == lookAt && o.grant == "", o
	}
	if out.code != "" {
		return true, o
	}
	next := o
	if o.grant == ended && out.grant == api.GrantRevoked {
		next.grant = api.GrantRevoked
	}
	if out.request == api.RequestExpired || out.grant == api.GrantExpired {
		if ok, lapsed := o.lapse(); ok {
			next = lapsed
		}
	}
	ok := next.known && agrees(next.grant, out.grant, api.GrantActive, api.GrantExpired)
	if in.act == look {
		ok = ok && agrees(next.request, out.request, api.RequestPending, api.RequestExpired)
		if next.request == api.RequestPending || next.request == api.RequestApproved {
			ok = ok && next.voters == out.voters
		}
	} else {
		ok = ok && next.serials == out.serials
	}
	return ok, next
}

func agrees(have, told, alive, over string) bool {
	if told == lapsing {
		return have == alive || have == over || have == ended
	}
	return have == told
}

// model is one request's.
func model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return object{} },
		Step: func(state, in, out any) (bool, any) {
			ok, next := state.(object).step(in.(input), out.(output))
			return ok, next
		},
		Equal:             func(a, b any) bool { return a == b },
		DescribeOperation: func(in, out any) string { return in.(input).String() + " = " + out.(output).String() },
		DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
	}
}

// never is when a call returns of which nobody knows whether it had an effect.
const never = int64(math.MaxInt64)

func (in input) String() string {
	text := in.person + " " + string(in.act)
	if in.act == block {
		text += [...]string{" before its end", " about its end", " after its end"}[in.against]
	}
	return text
}

func (out output) String() string {
	switch {
	case out.perhaps:
		return "perhaps"
	case out.code != "":
		return string(out.code)
	}
	return fmt.Sprintf("%s %s voters:%b certificates:%b", out.request, out.grant, out.voters, out.serials)
}
