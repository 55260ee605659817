package console

import (
	"net/http"
	"time"

	"github.com/hallpass/hallpass/approval/api"
)

// mustStepUp says whether the policy wants whoever approves the request to have
// signed in later than this session did.
func (v visit) mustStepUp(r api.Request) bool {
	age := time.Now().Round(0).Sub(v.signedIn)
	return r.StepUp > 0 && (age < 0 || age > time.Duration(r.StepUp)) // a clock that was set back says nothing
}

// stepUp refuses what the session is too old for. Whoever finds a browser that is
// signed in, or stole its cookie, could else approve for its person for as long as
// the session lasts. With the person's key one can: no browser is asked then.
func (v visit) stepUp(id string) error {
	r, err := v.api.Request(v.Context(), id)
	if err != nil {
		return err
	}
	if v.mustStepUp(r) {
		return api.NewProblem(api.CodeDenied, "the policy wants whoever approves this to have signed in at most "+r.StepUp.String()+" before",
			"sign in again, then decide")
	}
	return nil
}

// signInAgain has the person show that it is them.
func (c *Console) signInAgain(_ http.ResponseWriter, v visit) (outcome, error) {
	id := v.PathValue("id")
	if _, err := v.api.Request(v.Context(), id); err != nil {
		return outcome{}, err
	}
	next := c.sessions.SignInAgain(v.Request, link("requests", id))
	return outcome{view: view{page: "problem", title: "Sign in again", body: trouble{What: "Show that it is you.", Next: next}}}, nil
}
