//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// badFile is a file that is saved while a mesh runs, and what lateen up then
// says, once.
type badFile struct {
	name, text string
	says       []string
}

func object(kind, name, spec string) string {
	group := map[string]string{"AuthorizationPolicy": "security", "Telemetry": "telemetry"}[kind]
	if group == "" {
		group = "networking"
	}
	return fmt.Sprintf("apiVersion: %s.istio.io/v1\nkind: %s\nmetadata: {name: %s}\nspec: %s\n", group, kind, name, spec)
}

func badFiles() []badFile {
	bomb := "{workloadSelector: {labels: {app: nobody}}, configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {a: &a [x,x,x,x,x,x,x,x,x]"
	for c := 'b'; c < 'j'; c++ {
		bomb += fmt.Sprintf(", %c: &%c [%s]", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	bomb = strings.Replace(object("EnvoyFilter", "bomb", bomb+"}}}]}"), "/v1\n", "/v1alpha3\n", 1)
	route := func(name, match, destinations string) string {
		return object("VirtualService", name, "{hosts: ["+name+".example], http: [{"+match+"route: ["+destinations+"]}]}")
	}
	const web = "{destination: {host: web}}"
	return []badFile{
		{"half.yaml", object("AuthorizationPolicy", "half", "{rules: ["), []string{"error", "m/half.yaml:4:", "LAT0002", "not valid YAML", "hint: "}},
		{"bomb.yaml", bomb, []string{"error", "m/bomb.yaml:4:", "LAT0004", "EnvoyFilter/bomb.default", "hint: "}},
		{"large.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: large}\ndata:\n  a: \"" + strings.Repeat("x", 10<<20) + "\"\n", []string{"error", "m/large.yaml:1:1", "LAT0003", "10.0 MiB", "hint: "}},
		{"twice.yaml", object("AuthorizationPolicy", "web", "{}"), []string{"error", "m/twice.yaml:3:", "LAT0017", "AuthorizationPolicy/web.default", "small.yaml:", "hint: "}},
		{"host.yaml", route("host", "", "{destination: {host: nowhere}}"), []string{"error", "m/host.yaml:4:", "LAT0101", "VirtualService/host.default", "hint: "}},
		{"subset.yaml", route("subset", "", "{destination: {host: web, subset: v9}}"), []string{"error", "m/subset.yaml:4:", "LAT0104", "VirtualService/subset.default", "hint: "}},
		{"weights.yaml", route("weights", "", "{destination: {host: web}, weight: 30}, {destination: {host: web}, weight: 30}"), []string{"warning", "m/weights.yaml:4:", "LAT0112", "sum to 60", "hint: "}},
		{"regex.yaml", route("regex", "match: [{uri: {regex: \"((a{1,1000}){1,1000}){1,1000}\"}}], ", web), []string{"error", "m/regex.yaml:4:", "LAT0113", "RE2 does not accept", "hint: "}},
		{"program.yaml", route("long", "match: [{uri: {regex: \""+strings.Repeat("(?:a{900})?", 20)+"\"}}], ", web), []string{"error", "m/program.yaml:4:", "LAT0113", "instructions", "hint: "}},
	}
}

// TestFaults_eachBadFileIsToldOnce saves bad files beside a mesh that runs, with
// every port taken that it would open on the host.
func TestFaults_eachBadFileIsToldOnce(t *testing.T) {
	port, release := takenPorts(t)
	defer release()
	m := up(t, folder(t, small+strings.Replace(front, "port: 8080", fmt.Sprintf("port: %d", port), 1)), 4, "-f", "m")
	m.says(5*time.Second, "service ", "front.default", "error: ", fmt.Sprintf("neither port %d nor the next 19 is free", port), "address already in use", "free one of them")
	for _, f := range badFiles() {
		write(t, filepath.Join(m.dir, "m", f.name), f.text)
	}
	unreadable := filepath.Join(m.dir, "m", "unreadable.yaml")
	if err := os.Symlink("/etc/shadow", unreadable); err != nil {
		t.Fatal(err)
	}
	give(t, m.dir)
	m.says(20*time.Second, "error", "m/unreadable.yaml", "LAT0001", "permission denied", "hint: ")
	for _, f := range badFiles() {
		m.says(20*time.Second, f.says...)
		if all := m.said("m/" + f.name + ":"); len(all) > 2 {
			t.Errorf("about %s: %q", f.name, all)
		}
	}
	m.inForce("beside bad files")
	for _, f := range badFiles() {
		if err := os.Remove(filepath.Join(m.dir, "m", f.name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(unreadable); err != nil {
		t.Fatal(err)
	}
	m.says(15*time.Second, "findings", "no error is left")
	m.inForce("after bad files")
}

// takenPorts listens on twenty ports in a row, all that a host port may move to.
func takenPorts(t *testing.T) (first int, release func()) {
	t.Helper()
	for first = 21000; first < 30000; first += 20 {
		var all []net.Listener
		release = func() {
			for _, l := range all {
				l.Close()
			}
		}
		for i := range 20 {
			l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", first+i))
			if err != nil {
				break
			}
			all = append(all, l)
		}
		if len(all) == 20 {
			return first, release
		}
		release()
	}
	t.Fatal("no twenty free ports in a row")
	return 0, nil
}

// TestFaults_machineThatRefuses starts a mesh where the machine lacks what it
// needs: it says what, why and the remedy, and leaves nothing.
func TestFaults_machineThatRefuses(t *testing.T) {
	for what, want := range map[string][]string{
		"namespaces": {"error: this machine refuses to make namespaces: ", "the limit of user or network namespaces is 0", "user.max_user_namespaces="},
		"networks":   {"error: this machine refuses to make namespaces: ", "the limit of user or network namespaces is 0", "user.max_net_namespaces="},
		"nftables":   {"error: this machine refuses to install nftables rules: ", "the kernel lacks a network module", "modprobe -a veth nf_tables"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := folder(t, small)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			cmd := command(ctx, dir, "up", "-f", "m")
			cmd.Args = append([]string{filepath.Join(programs, "goapp"), "without", what, cmd.Path}, cmd.Args[1:]...)
			cmd.Path = cmd.Args[0]
			ids := []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
			if os.Geteuid() == 0 {
				ids[0].HostID = nobody
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids,
				Credential: &syscall.Credential{NoSetGroups: true},
			}
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			var exit *exec.ExitError
			if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("%v, want exit code 1", err)
			}
			for _, piece := range want {
				if !strings.Contains(errs.String(), piece) {
					t.Errorf("no %q in %s", piece, errs.String())
				}
			}
			if n := strings.Count(errs.String(), "error:"); n != 1 || strings.Count(errs.String(), "hint:") != 1 || strings.Contains(out.String(), "error:") {
				t.Errorf("want one error and one hint:\n%s%s", out.String(), errs.String())
			}
			if _, err := os.Stat(filepath.Join(dir, ".lateen", "run")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("sockets are left: %v", err)
			}
		})
	}
}
