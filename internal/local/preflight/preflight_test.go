package preflight

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExplain_namesCauseAndRemedy(t *testing.T) {
	for _, c := range []struct {
		name  string
		stage Stage
		err   error
		files map[string]string
		want  string
	}{
		{"AppArmor", Clone, unix.EPERM, map[string]string{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "profile lateen /opt/lateen flags"},
		{"Debian's switch", Clone, unix.EPERM, map[string]string{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, "unprivileged_userns_clone=1"},
		{"used up", Clone, fmt.Errorf("fork: %w", unix.ENOSPC), nil, "max_user_namespaces=28633"},
		{"masked proc", Proc, unix.EPERM, map[string]string{"/.dockerenv": "\n"}, "systempaths=unconfined"},
		{"seccomp", Clone, unix.EPERM, map[string]string{"/run/.containerenv": "\n"}, "seccomp=unconfined"},
		{"SELinux", Mount, unix.EACCES, map[string]string{"/sys/fs/selinux/enforce": "1\n"}, "ausearch"},
		{"no module", Rules, unix.EOPNOTSUPP, nil, "modprobe"},
		{"unknown", Mount, unix.EINVAL, nil, "make mounts private: invalid argument"},
	} {
		m := machine{program: "/opt/lateen", read: func(p string) string { return c.files[p] }}
		r := m.explain(c.stage, c.err)
		if !strings.Contains(r.Error(), c.want) {
			t.Errorf("%s: %q lacks %q", c.name, r.Error(), c.want)
		}
	}
	chroot := machine{chroot: true, read: func(string) string { return "" }}
	if r := chroot.explain(Clone, unix.EPERM); r.Remedy != "leave the chroot" {
		t.Errorf("chroot: %v", r)
	}
}
