package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/hallpass/hallpass/approval/api"
)

// outcome is what Slack makes of a message: in place of the one with the buttons, or
// beside it and for the person alone.
type outcome struct {
	Replace bool              `json:"replace_original"`
	Type    string            `json:"response_type,omitempty"`
	Text    string            `json:"text"`
	Blocks  []json.RawMessage `json:"blocks"`
}

// decided takes the buttons away for everyone, and says who decided.
func decided(p press, r api.Request) outcome {
	who := p.account
	for _, d := range r.Decisions {
		if d.Slack == p.account {
			who = d.Person
		}
	}
	verb, rest := "approved", ""
	if p.decision == "deny" {
		verb = "denied"
	} else if r.State == api.RequestPending {
		rest = "; it waits for others, who decide with their own identity"
	}
	text := fmt.Sprintf("%s %s it in Slack%s.", who, verb, rest)
	return outcome{Replace: true, Text: escaped(text), Blocks: append(p.blocks, plain(text))}
}

// refused tells the person alone why nothing was decided. The message stays: somebody
// else may decide.
func refused(p press, err error) outcome {
	text := "It is not known whether that was decided: hallpass review show " + p.request
	if problem, ok := errors.AsType[*api.Problem](err); ok {
		text = "Not decided. " + problem.Error()
		if errors.Is(err, api.ErrAmbiguous) || problem.Status >= http.StatusInternalServerError {
			text = "It is not known whether that was decided (" + string(problem.Code) + "): hallpass review show " + p.request
		}
	}
	return outcome{Type: "ephemeral", Text: escaped(text), Blocks: []json.RawMessage{plain(text)}}
}

// plain is a block in which Slack sees no link, no mention and no markup.
func plain(text string) json.RawMessage {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
	if r := []rune(text); len(r) > 1000 {
		text = string(r[:1000]) + "…"
	}
	type words struct {
		Type  string `json:"type"`
		Text  string `json:"text"`
		Emoji bool   `json:"emoji"`
	}
	out, err := json.Marshal(struct {
		Type string `json:"type"`
		Text words  `json:"text"`
	}{"section", words{"plain_text", text, false}})
	if err != nil {
		return json.RawMessage(`{"type":"divider"}`) // a text always marshals
	}
	return out
}

func escaped(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}

// answer sends an outcome to where the call says, if that is Slack's.
func (b *Bridge) answer(ctx context.Context, to string, o outcome) error {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != b.hooks.Scheme || u.Host != b.hooks.Host || u.User != nil || !strings.HasPrefix(u.Path, "/actions/"+b.team+"/") {
		// Whoever has the secret would have the bridge call what it alone can reach, or
		// tell another workspace what came of it.
		return fmt.Errorf("the response_url is not at %s/actions/%s/", b.hooks, b.team)
	}
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return errors.New("the response_url cannot be called")
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := b.client.Do(req)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the URL, by which anyone may write into the channel
		}
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 4096)) // so that the connection may be used again
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %d", res.StatusCode)
	}
	return nil
}
