package testenv

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// NginxOptions says what an nginx does. The zero value serves the files of its
// folder www over HTTP/1.1.
type NginxOptions struct {
	// Listen is what `listen` says besides the address: "http2" for cleartext
	// HTTP/2 and nothing else, "ssl http2" for both over TLS.
	Listen string
	// Server is the inside of the server block: directives and locations.
	Server string
}

// Nginx is a real nginx, a process of this user with its files in a temporary
// folder, listening on loopback until the test ends.
type Nginx struct {
	Dir string // with www, access.log and error.log

	env     *Env
	address string
	cmd     *exec.Cmd
	stderr  bytes.Buffer
	ended   chan struct{}
}

// Nginx runs an nginx. One that is not installed ends the test: there is no
// stand-in for a program that we did not write.
func (e *Env) Nginx(o NginxOptions) *Nginx {
	e.t.Helper()
	n := &Nginx{Dir: e.t.TempDir(), env: e}
	e.must(os.Mkdir(n.WWW(), 0o755))
	const tries = 5 // the port may be somebody else's by the time nginx wants it
	for range tries {
		if n.start(o) {
			e.t.Cleanup(n.Stop)
			return n
		}
	}
	e.t.Fatalf("testenv: nginx does not start: %s%s", n.stderr.String(), n.read("error.log"))
	return nil
}

// start runs nginx and says whether it serves.
func (n *Nginx) start(o NginxOptions) bool {
	e := n.env
	e.t.Helper()
	n.address = e.freeAddress()
	e.must(os.WriteFile(filepath.Join(n.Dir, "nginx.conf"), []byte(n.config(o)), 0o600))
	n.stderr.Reset()
	n.cmd = exec.CommandContext(context.WithoutCancel(e.t.Context()), e.nginxBinary(), "-p", n.Dir, "-c", "nginx.conf", "-e", "error.log")
	n.cmd.Stderr = &n.stderr
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	e.must(n.cmd.Start())
	n.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		_ = cmd.Wait() // what matters is that it is gone
	}(n.cmd, n.ended)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case <-n.ended:
			return false
		default:
		}
		// Nginx writes it once it has its sockets: then the port is nobody else's.
		if _, err := os.Stat(filepath.Join(n.Dir, "nginx.pid")); err != nil {
			continue
		}
		if c, err := net.Dial("tcp", n.address); err == nil {
			_ = c.Close() // it was a question
			return true
		}
	}
	n.Stop()
	return false
}

// Stop ends the nginx. A stopped nginx stays stopped.
func (n *Nginx) Stop() {
	_ = n.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	select {
	case <-n.ended:
	case <-time.After(patience):
		_ = n.cmd.Process.Kill()
		<-n.ended
	}
}

// Address is where it listens, host:port.
func (n *Nginx) Address() string { return n.address }

// Port is the port it listens on.
func (n *Nginx) Port() string {
	_, port, err := net.SplitHostPort(n.address)
	n.env.must(err)
	return port
}

// WWW is the folder whose files it serves.
func (n *Nginx) WWW() string { return filepath.Join(n.Dir, "www") }

// Write puts a file into WWW.
func (n *Nginx) Write(path string, data []byte) {
	n.env.t.Helper()
	file := filepath.Join(n.WWW(), path)
	n.env.must(os.MkdirAll(filepath.Dir(file), 0o755))
	n.env.must(os.WriteFile(file, data, 0o644))
}

// Requests is its access log so far: of each request that it finished, or
// refused itself, the status and the first line as they reached it.
func (n *Nginx) Requests() []string {
	text := strings.TrimSuffix(n.read("access.log"), "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func (n *Nginx) read(name string) string {
	text, err := os.ReadFile(filepath.Join(n.Dir, name))
	if err != nil {
		return ""
	}
	return string(text)
}

// config is one process that neither forks nor changes its user, and that
// writes nowhere but below its folder.
func (n *Nginx) config(o NginxOptions) string {
	return fmt.Sprintf(`daemon off;
master_process off;
%s
pid nginx.pid;
error_log error.log info;
events { worker_connections 256; }
http {
  types { text/plain txt; application/json json; application/octet-stream bin; }
  default_type application/octet-stream;
  log_format line '$status $request';
  access_log access.log line;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  sendfile on;
  server {
    listen %s %s;
    server_name localhost;
    root www;
%s
  }
}
`, n.env.userDirective(), n.address, o.Listen, o.Server)
}

// userDirective keeps root, as tests in containers run, from turning into
// nobody, who may not read a temporary folder.
func (e *Env) userDirective() string {
	e.t.Helper()
	if os.Geteuid() != 0 {
		return ""
	}
	me, err := user.Current()
	e.must(err)
	return "user " + me.Username + ";"
}

// nginxBinary also looks where Debian keeps what only root is thought to run.
func (e *Env) nginxBinary() string {
	e.t.Helper()
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	e.t.Fatalf("testenv: nginx is not installed: make deps")
	return ""
}
