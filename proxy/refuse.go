package proxy

import (
	"encoding/json"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/hallpass/hallpass/grant"
)

// problem is an RFC 9457 answer. It never holds an internal error's text.
type problem struct {
	Type       string `json:"type"`
	Title      string `json:"title"`
	Status     int    `json:"status"`
	Detail     string `json:"detail"`
	Code       string `json:"code"`
	Service    string `json:"service"`
	Permission string `json:"permission,omitempty"`
	Next       string `json:"next,omitempty"`
	Command    string `json:"command,omitempty"`
	RequestURL string `json:"request_url,omitempty"`
	TraceID    string `json:"trace_id,omitempty"`
}

func newProblem(status int, code, detail, service string) problem {
	return problem{
		Type: "urn:hallpass:problem:" + code, Title: http.StatusText(status),
		Status: status, Detail: detail, Code: code, Service: service,
	}
}

// missing says how to get the permission that is missing.
func (p *problem) missing(need grant.Permission, requestURL string) {
	p.Permission, p.Command = need.String(), requestCommand(p.Service, need)
	p.Next = "ask for the permission with the command, then call again with the certificate you are given"
	if requestURL != "" {
		p.RequestURL = requestURL + "?" + url.Values{"service": {p.Service}, "allow": {p.Permission}}.Encode()
	}
}

// requestCommand is the command that asks for a permission. It is made to be
// pasted into a shell, and the path in it is a stranger's.
func requestCommand(service string, need grant.Permission) string {
	if need.IsZero() {
		return ""
	}
	text := need.String()
	// A quote that is spelled %27 means the same and needs no quoting of its own:
	// the command then survives being cut out of JSON with sed.
	plain := strings.ReplaceAll(text, "'", "%27")
	if same, err := grant.ParsePermission(plain); err == nil && same == need {
		text = plain
	}
	return "hallpass request create " + shellQuote(service) + " --allow " + shellQuote(text) + " --for 30m --reason '…'"
}

// shellQuote quotes for any POSIX shell. Between single quotes nothing is
// special; a single quote ends them, stands escaped, and begins them anew.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// answers renders refusals in the words of who asked.
type answers struct{ page *template.Template }

func newAnswers() (*answers, error) {
	page, err := template.New("refused").Parse(refusedPage)
	if err != nil {
		return nil, err
	}
	return &answers{page}, nil
}

const refusedPage = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{.Title}}</title>
<style>body{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:4rem auto;padding:0 1rem}.ask{display:inline-block;padding:.6rem 1.2rem;border-radius:.5rem;background:#0b57d0;color:#fff;font-weight:600;text-decoration:none}pre{background:#eee;color:#111;padding:1rem;overflow:auto;user-select:all}</style>
<h1>{{.Status}} {{.Title}}</h1>
<p>{{.Detail}}</p>
{{if .RequestURL}}<p><a class="ask" href="{{.RequestURL}}">Request access</a></p>
{{end}}{{if .Command}}<p>Ask for it with</p>
<pre>{{.Command}}</pre>
{{end}}<p><small>{{.Service}} · {{.Code}}{{if .TraceID}} · trace {{.TraceID}}{{end}}</small></p>
</html>
`

// send answers with p: as gRPC status to a gRPC call, as a page to a browser, as
// problem+json to everyone else. It returns the HTTP status sent and the bytes of the body.
func (a *answers) send(w http.ResponseWriter, r *http.Request, p problem, grpc bool) (status int, size int64) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if grpc {
		sendGRPC(w, r, p)
		return http.StatusOK, 0
	}
	h.Set("X-Content-Type-Options", "nosniff")
	var body []byte
	if wantsPage(r) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Referrer-Policy", "no-referrer") // the address asked for may hold what is nobody else's business
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		body = a.html(p)
	} else {
		h.Set("Content-Type", "application/problem+json")
		body = p.json()
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	if r.Method == http.MethodHead {
		return p.Status, 0
	}
	n, _ := w.Write(body) // a client that is gone needs no answer
	return p.Status, int64(n)
}

func (a *answers) html(p problem) []byte {
	var b strings.Builder
	if err := a.page.Execute(&b, p); err != nil {
		return p.json()
	}
	return []byte(b.String())
}

func (p problem) json() []byte {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // it is not HTML, and is cut out of by scripts
	if err := enc.Encode(p); err != nil {
		return []byte("{}\n")
	}
	return []byte(b.String())
}

// wantsPage says whether a person's browser is asking.
func wantsPage(r *http.Request) bool {
	for _, v := range r.Header["Accept"] {
		if strings.Contains(v, "text/html") {
			return true
		}
	}
	return false
}

// sendGRPC answers with a trailers-only response: a status and no message
// (gRPC over HTTP/2, Responses).
func sendGRPC(w http.ResponseWriter, r *http.Request, p problem) {
	h := w.Header()
	kind := "application/grpc"
	if strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), "application/grpc-web") {
		kind = "application/grpc-web"
	}
	message := p.Detail
	if p.Command != "" {
		message += "; ask for it with: " + p.Command
	}
	h.Set("Content-Type", kind)
	h.Set("Grpc-Status", strconv.Itoa(grpcStatus(p.Status)))
	h.Set("Grpc-Message", grpcPercent(message))
	w.WriteHeader(http.StatusOK)
}

// grpcStatus maps an HTTP status as gRPC clients would read it.
func grpcStatus(status int) int {
	const invalidArgument, permissionDenied, resourceExhausted, internal, unavailable = 3, 7, 8, 13, 14
	switch {
	case status == http.StatusForbidden:
		return permissionDenied
	case status == http.StatusTooManyRequests, status == http.StatusRequestEntityTooLarge:
		return resourceExhausted
	case status >= 400 && status < 500:
		return invalidArgument
	case status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout:
		return unavailable
	default:
		return internal
	}
}

// grpcPercent encodes a Grpc-Message: everything but printable ASCII, and "%".
func grpcPercent(s string) string {
	const upperHex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		}
	}
	return b.String()
}

// raw renders a gate's refusal as a whole HTTP/1.1 response.
func (p problem) raw() []byte {
	body := p.json()
	var b strings.Builder
	b.WriteString("HTTP/1.1 " + strconv.Itoa(p.Status) + " " + http.StatusText(p.Status) + "\r\n")
	b.WriteString("Content-Type: application/problem+json\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n")
	b.WriteString("Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n")
	b.Write(body)
	return []byte(b.String())
}
