package approval

import (
	"crypto/sha256"
	"fmt"
)

// kept is the result of an accepted call that carried an Idempotency-Key.
type kept struct {
	BodyHash string `cbor:"1,keyasint"`
	Target   string `cbor:"2,keyasint"`
	Until    Millis `cbor:"3,keyasint"`
	Result   []byte `cbor:"4,keyasint"` // Result.Encode
}

// idemKey is where the result of the command's call is kept: the caller is part
// of it, so that nobody is handed what another was told.
func (t *turn) idemKey() []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "hallpass/idempotency/v1\x00%s\x00%s\x00%s", t.cmd.Actor, t.cmd.Kind, t.cmd.Idem.Key))
	return key(prefixIdem, string(sum[:]))
}

// replay returns what an earlier call with the same key came to.
func (t *turn) replay() (Result, bool, error) {
	if t.cmd.Idem == nil {
		return Result{}, false, nil
	}
	k, ok, err := load[kept](t, t.idemKey())
	if err != nil || !ok || t.now >= k.Until {
		return Result{}, false, err
	}
	if k.BodyHash != t.cmd.Idem.BodyHash || k.Target != t.cmd.Body.target() {
		return Result{}, false, &Error{
			Code:   CodeIdempotencyMismatch,
			Detail: fmt.Sprintf("idempotency key %q was used before for another call", t.cmd.Idem.Key),
			Next:   "use a new key for a new call",
		}
	}
	result, err := DecodeResult(k.Result)
	if err != nil {
		return Result{}, false, err
	}
	result.Replayed, result.Changed = true, false
	return result, true, nil
}

// keepResult stores the result of the command's call for IdemLife.
func (t *turn) keepResult(r Result) error {
	if t.cmd.Idem == nil {
		return nil
	}
	data, err := r.Encode()
	if err != nil {
		return err
	}
	at := t.idemKey()
	if old, ok, err := load[kept](t, at); err != nil {
		return err
	} else if ok {
		t.unmark(dueAt(prefixIdemDue, old.Until, dueIdem, string(at[len(prefixIdem):])))
	}
	until := t.now.Add(IdemLife)
	t.save(at, kept{BodyHash: t.cmd.Idem.BodyHash, Target: t.cmd.Body.target(), Until: until, Result: data})
	t.mark(dueAt(prefixIdemDue, until, dueIdem, string(at[len(prefixIdem):])))
	return nil
}

// pruneKept drops up to n results whose time is over and says how many it did.
// Every change drops a few more than it adds, so that no tick and no leaf is
// needed for it while there is traffic.
func (t *turn) pruneKept(n int) int {
	due, _ := t.due(prefixIdemDue, t.now, n)
	for _, k := range due {
		t.Delete(key(prefixIdem, k.id))
		t.unmark(k.key)
	}
	return len(due)
}
