package approval

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/hallpass/hallpass/trust"
)

// ErrInvariant is returned, wrapped, when a state contradicts what must always
// hold.
var ErrInvariant = errors.New("invariant broken")

// CheckInvariants reads the whole state and returns everything in it that must
// never be, nil when there is nothing. It trusts no index: each is recomputed
// from the objects and must be there key for key, and no other key may be. Its
// cost grows with the state; it is for tests and for an operator's doubts.
func CheckInvariants(r Reader) error {
	c := &checker{r: r, s: Read(r), want: map[string][]byte{}}
	m, ok, err := load[meta](r, []byte(keyMeta))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvariant, err)
	}
	if !ok {
		r.Scan(nil, nil, func(k, _ []byte) bool {
			c.bad("key %q before the bootstrap", k)
			return true
		})
		return errors.Join(c.errs...)
	}
	c.m = m
	c.want[keyMeta] = nil
	if taken, ok, err := load[manifestTaken](r, []byte(keyManifest)); ok || err != nil {
		c.want[keyManifest] = nil
		c.need(err == nil && taken.Sequence == m.Manifest, "manifest %d is in force and %d was taken: %v", m.Manifest, taken.Sequence, err)
	}
	c.cluster()
	c.directory()
	c.requests()
	c.grants()
	c.issues()
	c.changes()
	c.emergencies()
	c.feed()
	c.anchors()
	c.outbox()
	c.kept()
	c.audit()
	c.keys()
	return errors.Join(c.errs...)
}

// checker collects what is wrong and which keys ought to be there.
type checker struct {
	r    Reader
	s    State
	m    meta
	want map[string][]byte // nil: the key is an object's, its value is checked elsewhere
	errs []error

	persons   map[string]Person
	groups    map[string]Group
	byID      map[string]string // SPIFFE ID → person
	grantOf   map[string]Grant
	early     map[string]EmergencyRevocation // by the 16 bytes of the grant's id
	requestOf map[string]Request
	issuers   map[string]Issuer
}

func (c *checker) bad(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%w: %s", ErrInvariant, fmt.Sprintf(format, args...)))
}

// need says that a condition must hold.
func (c *checker) need(ok bool, format string, args ...any) {
	if !ok {
		c.bad(format, args...)
	}
}

func (c *checker) mark(k []byte) { c.want[string(k)] = []byte{1} }

// objects returns all records under a prefix by the rest of their key.
func objects[T any](c *checker, prefix string) map[string]T {
	all := map[string]T{}
	c.r.Scan([]byte(prefix), nil, func(k, data []byte) bool {
		var v T
		if err := decoder.Unmarshal(data, &v); err != nil {
			c.bad("record at %q: %v", k, err)
			return true
		}
		again, err := encoder.Marshal(v)
		c.need(err == nil && bytes.Equal(again, data), "record at %q is not canonical", k)
		c.want[string(k)] = nil
		all[string(k[len(prefix):])] = v
		return true
	})
	return all
}

// inOrder goes through a map in the order of its keys, so that findings are the
// same each time.
func inOrder[T any](all map[string]T, fn func(name string, v T)) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fn(name, all[name])
	}
}

// keys compares the keys that there are with those that there ought to be.
func (c *checker) keys() {
	seen := 0
	c.r.Scan(nil, nil, func(k, v []byte) bool {
		want, ok := c.want[string(k)]
		switch {
		case !ok:
			c.bad("key %q belongs to nothing", k)
		case want != nil && !bytes.Equal(want, v):
			c.bad("key %q says %q, not %q", k, v, want)
		default:
			seen++
		}
		return true
	})
	if seen == len(c.want) {
		return
	}
	inOrder(c.want, func(k string, _ []byte) {
		c.need(c.r.Get([]byte(k)) != nil, "key %q is missing", k)
	})
}

func (c *checker) cluster() {
	c.need(c.m.Cluster != "" && c.m.Epoch > 0 && c.m.LastNow > 0, "counters of a cluster without a name, epoch or time")
	restored := c.m.EpochBegan != 0
	c.need(restored == (c.m.Epoch > 1) && restored == (c.m.Lineage != ""), "epoch %d of lineage %q began at %s", c.m.Epoch, c.m.Lineage, c.m.EpochBegan)
	c.need(c.m.TrustDomain != c.m.GrantTrustDomain, "identities and grants share a trust domain")
	nodes := objects[Node](c, prefixNode)
	inOrder(nodes, func(name string, n Node) { c.need(n.ID == name, "node %q calls itself %q", name, n.ID) })
	inForce := c.roots()
	c.issuers = objects[Issuer](c, prefixIssuer)
	roles := map[string]bool{}
	inOrder(c.issuers, func(id string, i Issuer) {
		c.need(i.ID == id && sha256Hex(i.DER) == id, "issuer %s is not the hash of its certificate", id)
		_, known := nodes[i.Node]
		signs := i.Role
		if i.Role == RoleEmergency {
			known, signs = i.Node == "", RoleGrant
		}
		c.need(known || i.Denied != 0 || i.Retired != 0, "issuer %s is of no node", id)
		c.need(i.Denied != 0 || inForce[string(signs)+i.Root], "issuer %s is in use and its root is not in force", id)
		roles[i.Node+" "+string(i.Role)] = true
	})
	inOrder(nodes, func(name string, _ Node) {
		for _, role := range []Role{RoleIdentity, RoleGrant} {
			c.need(roles[name+" "+string(role)], "node %q has no %s issuer", name, role)
		}
	})
}

// roots checks that the roots in force are those that the documents say, and
// returns them.
func (c *checker) roots() map[string]bool {
	inForce := map[string]bool{}
	all := objects[Roots](c, prefixRoots)
	c.need(len(all) == 2 && c.m.TrustRevision > 0, "roots of %d trust domains", len(all))
	inOrder(all, func(role string, r Roots) {
		td := c.m.TrustDomain
		if r.Role == RoleGrant {
			td = c.m.GrantTrustDomain
		}
		set, err := r.Set(td)
		c.need(err == nil && string(r.Role) == role, "roots of %q: %v", role, err)
		c.need(len(r.InForce) == len(set.Roots()), "%d roots of %s in force, %d by its documents", len(r.InForce), td, len(set.Roots()))
		for i, root := range set.Roots() {
			c.need(i < len(r.InForce) && bytes.Equal(root.Raw, r.InForce[i]), "root %d of %s is not the documents'", i, td)
			inForce[role+trust.ID(root)] = true
		}
	})
	return inForce
}

func (c *checker) directory() {
	c.persons, c.groups, c.byID = objects[Person](c, prefixPerson), objects[Group](c, prefixGroup), map[string]string{}
	inOrder(c.persons, func(name string, p Person) {
		c.need(p.Name == name && len(p.IDs) > 0, "person %q: calls itself %q, with %d IDs", name, p.Name, len(p.IDs))
		for _, id := range p.IDs {
			c.need(c.byID[id] == "", "%s is both %q and %q", id, c.byID[id], name)
			c.byID[id] = name
			c.want[string(key(prefixPersonID, id))] = []byte(name)
		}
		for _, id := range p.Owns {
			c.mark(pairKey(prefixOwner, id, name))
		}
		if p.Slack != "" {
			_, twice := c.want[string(key(prefixSlack, p.Slack))]
			c.need(!twice, "Slack account %s is another's and %q's", p.Slack, name)
			c.want[string(key(prefixSlack, p.Slack))] = []byte(name)
		}
	})
	inOrder(c.groups, func(name string, g Group) {
		c.need(g.Name == name, "group %q calls itself %q", name, g.Name)
		for _, member := range g.Members {
			_, known := c.persons[member]
			c.need(known, "group %q: no person %q", name, member)
		}
		c.onCall(g)
		counting, err := c.s.Counting(g)
		c.need(err == nil, "group %q: %v", name, err)
		for _, person := range counting {
			c.mark(pairKey(prefixMember, person, name))
		}
		c.need(checkDistinct(name, g.Members) == nil, "group %q has a member twice", name)
	})
	c.standIns()
	c.need(len(c.groups[AdminGroup].Members) >= MinAdmins, "%d admins", len(c.groups[AdminGroup].Members))
	c.want[keyPolicy] = nil
	doc, err := c.s.Policy()
	c.need(err == nil && doc.Revision == c.m.PolicyRevision, "policy revision %d, counted %d: %v", doc.Revision, c.m.PolicyRevision, err)
	c.need(c.m.DirectoryRevision > 0, "no directory revision")
	if doc.YAML != "" {
		t := &turn{draft: newDraft(readOnly{c.r}), m: c.m}
		if err := t.checkPolicy(doc.YAML); err != nil {
			c.bad("policy: %v", err)
		}
	}
	inOrder(objects[Block](c, prefixBlock), func(subject string, b Block) {
		c.need(b.Subject == subject, "block of %q says %q", subject, b.Subject)
		c.r.Scan(pairPrefix(prefixLiveGrant, subject), nil, func(k, v []byte) bool {
			c.need(bytes.Compare(v, until(c.m.LastNow)) <= 0, "blocked subject %s has live grant %q", subject, k)
			return true
		})
	})
}

// readOnly makes a Tx of a Reader for checks that write nothing.
type readOnly struct{ Reader }

// Put implements Tx.
func (readOnly) Put(_, _ []byte) {}

// Delete implements Tx.
func (readOnly) Delete(_ []byte) {}

// Append implements Tx.
func (readOnly) Append(_ []byte) {}
