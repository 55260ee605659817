package bridge

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/google/uuid"
)

// press is one button that was pressed.
type press struct {
	account  string // TEAM/USER
	decision string // approve or deny
	request  string
	hash     string
	answer   string            // where Slack takes the outcome
	blocks   []json.RawMessage // of the message that it is in
}

// interaction is what Slack sends of it, as far as it is looked at. All of it is signed.
type interaction struct {
	Type string `json:"type"`
	Team struct {
		ID string `json:"id"`
	} `json:"team"`
	User struct {
		ID     string `json:"id"`
		TeamID string `json:"team_id"`
	} `json:"user"`
	Actions []struct {
		ActionID string `json:"action_id"`
		BlockID  string `json:"block_id"`
		Type     string `json:"type"`
		Value    string `json:"value"`
	} `json:"actions"`
	ResponseURL string `json:"response_url"`
	Message     struct {
		Blocks []json.RawMessage `json:"blocks"`
	} `json:"message"`
}

// blockID is that of our buttons, as approval/notify makes them.
const blockID = "hallpass"

// errOther is returned for what is no button of ours.
var errOther = errors.New("no button of hallpass")

// readPress reads a body that Slack has signed.
func readPress(body []byte, team string) (press, error) {
	form, err := url.ParseQuery(string(body))
	if err != nil || len(form) != 1 || len(form["payload"]) != 1 {
		return press{}, errOther
	}
	var in interaction
	if err := json.Unmarshal([]byte(form["payload"][0]), &in); err != nil || in.Type != "block_actions" || len(in.Actions) != 1 {
		return press{}, errOther
	}
	if in.Team.ID != team {
		return press{}, fmt.Errorf("workspace %q is not %s", clip(in.Team.ID), team)
	}
	if in.User.TeamID != "" && in.User.TeamID != team {
		// Another workspace's admins say who its users are, in a channel that both share.
		return press{}, fmt.Errorf("user %q is of workspace %q, not of %s", clip(in.User.ID), clip(in.User.TeamID), team)
	}
	a := in.Actions[0]
	decision, ours := strings.CutPrefix(a.ActionID, "hallpass_")
	if !ours || a.Type != "button" || a.BlockID != blockID || decision != "approve" && decision != "deny" {
		return press{}, errOther
	}
	p := press{account: team + "/" + in.User.ID, decision: decision, answer: in.ResponseURL}
	p.request, p.hash, _ = strings.Cut(a.Value, " ")
	id, err := uuid.Parse(p.request)
	if raw, bad := hex.DecodeString(p.hash); err != nil || bad != nil || id.String() != p.request || len(raw) != 32 {
		return press{}, errOther
	}
	for _, b := range in.Message.Blocks {
		var kind struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(b, &kind) == nil && kind.Type != "actions" {
			p.blocks = append(p.blocks, b)
		}
	}
	return p, nil
}

// clip keeps what others chose from filling a log.
func clip(text string) string { return text[:min(len(text), 40)] }
