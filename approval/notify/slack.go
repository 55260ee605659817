package notify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/slack-go/slack"

	"github.com/hallpass/hallpass/approval"
)

// SlackAPI is where Slack's API is.
const SlackAPI = "https://slack.com/api/"

const (
	// slackEvent is the type of the metadata that a message carries its delivery's id in.
	slackEvent = "hallpass_delivery"
	// slackPages is how many pages of a channel are looked through for a message.
	slackPages = 10
	slackPage  = 200
	// maxSlackAnswer is how much of an answer is read: a page of messages, with metadata.
	maxSlackAnswer = 8 << 20
	// maxSlackHeader is how long a header may be, in characters: Slack's limit is 150.
	maxSlackHeader = 140
)

// slacker posts to one channel. slack-go is used in this file alone.
//
// Slack has no ids of a sender's own, and posts what it is sent twice twice. So each
// message carries its delivery's id as metadata, and what may have been sent before is
// looked for among the channel's messages first.
type slacker struct {
	client  *slack.Client
	channel string
}

func (t *Target) slack(c TargetConfig, now func() time.Time) error {
	base := c.URL
	if base == "" {
		base = SlackAPI
	}
	u, err := checkURL(base)
	if err != nil || !strings.HasSuffix(base, "/") {
		return &FieldError{"url", errAddress.Error() + ", and with a slash at its end; default " + SlackAPI}
	}
	if !strings.HasPrefix(c.Secret, "xoxb-") {
		return &FieldError{"token_file", "want a bot's token, which begins with xoxb-"}
	}
	if c.Channel == "" || strings.Trim(c.Channel, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
		return &FieldError{"channel", fmt.Sprintf("%q: want a channel's id such as C024BE91L: a name may become another channel's", c.Channel)}
	}
	t.host = u.Scheme + "://" + u.Host
	p := newPoster(c.Roots, now)
	t.channel = &slacker{channel: c.Channel, client: slack.New(c.Secret, slack.OptionAPIURL(base), slack.OptionHTTPClient(limited{&p.client}))}
	return nil
}

// limited reads no more of an answer than a page of messages is long.
type limited struct{ client *http.Client }

// Do implements slack-go's interface of a client.
func (l limited) Do(r *http.Request) (*http.Response, error) {
	res, err := l.client.Do(r) //nolint:gosec // where it goes is for the configuration to say
	if err != nil {
		return nil, err
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(res.Body, maxSlackAnswer), res.Body}
	return res, nil
}

// Send implements Channel.
func (s *slacker) Send(ctx context.Context, d Delivery) error {
	if d.Again {
		there, err := s.posted(ctx, d)
		if err != nil || there {
			return err
		}
	}
	m := d.words()
	_, _, err := s.client.PostMessageContext(ctx, s.channel,
		slack.MsgOptionText(m.title, true), // what a notification shows; escaped
		slack.MsgOptionBlocks(append(slackBlocks(m), slackButtons(d.Event)...)...),
		slack.MsgOptionMetadata(slack.SlackMetadata{EventType: slackEvent, EventPayload: map[string]any{"id": d.ID}}),
		slack.MsgOptionDisableLinkUnfurl(), slack.MsgOptionDisableMediaUnfurl(),
	)
	return slackFailure(err)
}

// slackBlocks says a message. Other people's words are plain_text, in which Slack sees
// no link, no mention of a channel and no markup.
func slackBlocks(m message) []slack.Block {
	plain := func(text string) *slack.TextBlockObject {
		return slack.NewTextBlockObject(slack.PlainTextType, text, false, false)
	}
	blocks := []slack.Block{slack.NewHeaderBlock(plain(shortened(m.title, maxSlackHeader)))}
	for _, f := range m.fields {
		blocks = append(blocks, slack.NewSectionBlock(plain(f.name+": "+f.value), nil, nil))
	}
	if m.link != "" {
		escaped := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "|", "%7C").Replace(m.link)
		blocks = append(blocks, slack.NewSectionBlock(slack.NewTextBlockObject(slack.MarkdownType, "<"+escaped+"|Look at it>", false, true), nil, nil))
	}
	if m.next != "" {
		blocks = append(blocks, slack.NewSectionBlock(plain("To decide: "+m.next), nil, nil))
	}
	return blocks
}

// slackButtons let it be decided there. What each says of the request is which, and the
// hash of what the message shows: who presses it decides on that and on nothing else.
func slackButtons(e Event) []slack.Block {
	if e.Request == nil || len(e.Buttons) == 0 {
		return nil
	}
	var all []slack.BlockElement
	for _, v := range e.Buttons {
		if v == approval.Approve && !e.Request.shownWhole() {
			continue
		}
		b := slack.NewButtonBlockElement("hallpass_"+string(v), e.Request.ID+" "+e.Request.Hash, slack.NewTextBlockObject(slack.PlainTextType, strings.ToUpper(string(v[:1]))+string(v[1:]), false, false))
		b.Style = map[approval.Verdict]slack.Style{approval.Approve: slack.StylePrimary, approval.Deny: slack.StyleDanger}[v]
		all = append(all, b)
	}
	return []slack.Block{slack.NewActionBlock("hallpass", all...)}
}

// posted reports whether a delivery is in the channel already.
func (s *slacker) posted(ctx context.Context, d Delivery) (bool, error) {
	params := &slack.GetConversationHistoryParameters{
		ChannelID: s.channel, Limit: slackPage, IncludeAllMetadata: true,
		Oldest: strconv.FormatInt(d.Time.Add(-5*time.Minute).Unix(), 10), // clocks differ
	}
	for range slackPages {
		page, err := s.client.GetConversationHistoryContext(ctx, params)
		if err != nil {
			return false, slackFailure(err)
		}
		for _, m := range page.Messages {
			if m.Metadata.EventType == slackEvent && m.Metadata.EventPayload["id"] == d.ID {
				return true, nil
			}
		}
		if params.Cursor = page.ResponseMetaData.NextCursor; !page.HasMore || params.Cursor == "" {
			break
		}
	}
	return false, nil
}

// slackFailure is an error without words that Slack, or who is in its place, could choose
// freely.
func slackFailure(err error) error {
	if err == nil {
		return nil
	}
	if limit, ok := errors.AsType[*slack.RateLimitedError](err); ok {
		return &Failure{Cause: "answered 429 Too Many Requests", After: min(max(limit.RetryAfter, 0), maxRetryAfter)}
	}
	if status, ok := errors.AsType[slack.StatusCodeError](err); ok {
		return &Failure{Cause: fmt.Sprintf("answered %d %s", status.Code, http.StatusText(status.Code))}
	}
	if said, ok := errors.AsType[slack.SlackErrorResponse](err); ok {
		if len(said.Err) > 64 || strings.Trim(said.Err, "abcdefghijklmnopqrstuvwxyz_") != "" {
			return &Failure{Cause: "Slack refused the call"}
		}
		return &Failure{Cause: "Slack says " + said.Err}
	}
	return failed(err)
}

// shortened cuts a text to n characters.
func shortened(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n]) + "…"
	}
	return text
}
