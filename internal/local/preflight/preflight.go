// Package preflight explains why this machine refuses to run the local cluster.
// The rule is to try and then explain: the attempt itself is the node's first
// steps, and this package turns the step that was refused into a cause and a
// remedy of one line. It reads settings of the machine and changes none.
package preflight

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Stage is a step of the node's start that a machine may refuse.
type Stage string

// The steps in order.
const (
	Clone     Stage = "make namespaces"
	Mount     Stage = "make mounts private"
	Proc      Stage = "mount /proc"
	Network   Stage = "set up the network"
	Tmpfs     Stage = "mount a memory file system"
	Rules     Stage = "install nftables rules"
	Pod       Stage = "make a pod's network"
	Container Stage = "start a container"
)

// Refusal is a machine that does not let the cluster run.
type Refusal struct {
	Stage  Stage
	Err    error
	Cause  string
	Remedy string
}

// Error is one line of what, why and next step.
func (r *Refusal) Error() string {
	s := fmt.Sprintf("this machine refuses to %s: %v", r.Stage, r.Err)
	if r.Cause != "" {
		s += ": " + r.Cause
	}
	if r.Remedy != "" {
		s += "\nhint: " + r.Remedy
	}
	return s
}

// Unwrap returns the operating system's error.
func (r *Refusal) Unwrap() error { return r.Err }

// machine is what Explain looks at, so that tests can describe other machines.
type machine struct {
	read func(path string) string
	// program is the path that an AppArmor profile must name.
	program string
	chroot  bool
}

// Explain finds the cause and the remedy of a refusal. program is the path of
// the running program.
func Explain(stage Stage, err error, program string) *Refusal {
	m := machine{program: program, chroot: inChroot(), read: func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(data)) + "\n"
	}}
	return m.explain(stage, err)
}

func inChroot() bool {
	var root, init unix.Stat_t
	if unix.Stat("/", &root) != nil || unix.Stat("/proc/1/root", &init) != nil {
		return false // not allowed to look: then it is not known
	}
	return root.Ino != init.Ino || root.Dev != init.Dev
}

func (m machine) is(path, value string) bool { return m.read(path) == value+"\n" }

func (m machine) explain(stage Stage, err error) *Refusal {
	r := &Refusal{Stage: stage, Err: err}
	denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
	container := m.read("/.dockerenv") != "" || m.read("/run/.containerenv") != "" ||
		strings.Contains(m.read("/proc/1/environ"), "container=")
	switch {
	case errors.Is(err, unix.ENOSPC), m.is("/proc/sys/user/max_user_namespaces", "0"), m.is("/proc/sys/user/max_net_namespaces", "0"):
		r.Cause = "the limit of user or network namespaces is 0 or used up"
		r.Remedy = "sudo sysctl -w user.max_user_namespaces=28633 user.max_net_namespaces=28633"
	case denied && m.is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"):
		r.Cause = "AppArmor restricts user namespaces (kernel.apparmor_restrict_unprivileged_userns=1)"
		r.Remedy = "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0\n  or, for this program only: printf 'abi <abi/4.0>,\\nprofile lateen " +
			m.program + " flags=(unconfined) { userns, }\\n' | sudo tee /etc/apparmor.d/lateen && sudo apparmor_parser -r /etc/apparmor.d/lateen"
	case denied && m.is("/proc/sys/kernel/unprivileged_userns_clone", "0"):
		r.Cause = "user namespaces are switched off for ordinary users (kernel.unprivileged_userns_clone=0)"
		r.Remedy = "sudo sysctl -w kernel.unprivileged_userns_clone=1"
	case stage == Proc && denied:
		r.Cause = "parts of /proc are masked, as container engines do"
		r.Remedy = "start the container with --security-opt systempaths=unconfined"
	case denied && container:
		r.Cause = "this is a container whose seccomp or AppArmor profile forbids namespaces"
		r.Remedy = "start the container with --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
	case denied && stage == Clone && m.chroot:
		r.Cause = "user namespaces cannot be made inside a chroot"
		r.Remedy = "leave the chroot"
	case denied && m.is("/sys/fs/selinux/enforce", "1"):
		r.Cause = "SELinux may forbid user namespaces"
		r.Remedy = "sudo ausearch -m avc -ts recent | grep user_namespace"
	case stage == Network || stage == Rules || stage == Pod:
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
			r.Cause = "the kernel lacks a network module"
			r.Remedy = "sudo modprobe -a veth nf_tables nft_redir nft_nat nft_chain_nat nft_reject_inet nft_numgen"
		}
	}
	return r
}
