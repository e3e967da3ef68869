// Package shim turns a process into a container: it builds the root file system
// of a pod's container in new namespaces and becomes the application. No shim
// process stays behind.
//
// Start runs in the node and forks; Main is the hidden role that the forked
// program plays. The container lives in a user namespace nested in the node's:
// it holds no capability over the pod's network, so that it can neither set a
// socket mark nor change capture, and it cannot see the node's sockets.
package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/netns"
	"lateen.dev/lateen/internal/local/reap"
)

// RoleContainer and RoleExec are the hidden first arguments.
const (
	RoleContainer = "__container"
	RoleExec      = "__exec"
)

// Self is the program that plays the hidden roles: the running one.
const Self = "/proc/self/exe"

// Spec is a container.
type Spec struct {
	Hostname string `json:"hostname"`
	// Staging is an existing empty directory over which the shim mounts.
	Staging string `json:"staging"`
	// RootFS is an unpacked image; empty means the host's own file system.
	RootFS       string  `json:"rootFS,omitempty"`
	ReadOnlyRoot bool    `json:"readOnlyRoot,omitempty"`
	Mounts       []Mount `json:"mounts,omitempty"`
	// Files are written into the container: path → content.
	Files map[string]string `json:"files,omitempty"`
	// Hide are paths that must look empty: the node's own sockets.
	Hide []string `json:"hide,omitempty"`
	// Args is the program and its arguments. A program without a slash is looked
	// up in PATH of Env inside the container.
	Args []string `json:"args"`
	// Fallback is run instead when the program does not exist inside.
	Fallback []string `json:"fallback,omitempty"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir,omitempty"`
	UID      int      `json:"uid"`
	GID      int      `json:"gid"`
}

// Mount is one volume.
type Mount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Start starts a container in the network namespace nsfd. stdio are three
// descriptors. It returns when the application's program runs, or the reason why
// it does not.
func Start(r *reap.Reaper, spec Spec, nsfd int, stdio [3]int) (*reap.Process, error) {
	specFD, err := memfd(spec)
	if err != nil {
		return nil, err
	}
	defer unix.Close(specFD)
	status, statusW, err := pipe()
	if err != nil {
		return nil, err
	}
	defer unix.Close(status)
	attr := &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{uintptr(stdio[0]), uintptr(stdio[1]), uintptr(stdio[2]), uintptr(specFD), uintptr(statusW)},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: spec.UID, HostID: 0, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: spec.GID, HostID: 0, Size: 1}},
			// A user other than 0 would lose these at exec.
			AmbientCaps: []uintptr{
				unix.CAP_SYS_ADMIN, unix.CAP_DAC_OVERRIDE, unix.CAP_SYS_CHROOT,
				unix.CAP_SYS_RESOURCE, unix.CAP_SETPCAP,
			},
			Setsid: true,
		},
	}
	var p *reap.Process
	err = netns.Do(nsfd, func() error {
		var err error
		p, err = r.Start(Self, []string{"lateen-container", RoleContainer}, attr)
		return err
	})
	unix.Close(statusW)
	if err != nil {
		return nil, err
	}
	if err := readStatus(status); err != nil {
		p.Signal(unix.SIGKILL)
		<-p.Done()
		return nil, err
	}
	return p, nil
}

// readStatus waits for the end of the status pipe: it closes when the program
// was executed, and carries a message when it was not.
func readStatus(fd int) error {
	f := os.NewFile(uintptr(dup(fd)), "status")
	defer f.Close()
	msg, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("wait for the container: %w", err)
	}
	if len(msg) > 0 {
		return errors.New(string(msg))
	}
	return nil
}

func dup(fd int) int {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1 // reading from it reports the error
	}
	return n
}

func pipe() (r, w int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, fmt.Errorf("make a pipe: %w", err)
	}
	return fds[0], fds[1], nil
}

// memfd puts v into an anonymous file to be inherited.
func memfd(v any) (int, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return -1, fmt.Errorf("encode specification: %w", err)
	}
	return Memfd("spec", data)
}

// Memfd returns an anonymous file with that content, read from its start.
func Memfd(name string, data []byte) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make an anonymous file: %w", err)
	}
	if _, err := unix.Pwrite(fd, data, 0); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("write an anonymous file: %w", err)
	}
	return fd, nil
}

// Main is the role RoleContainer. It returns only if the application cannot be
// executed; the reason has then been reported.
func Main() int {
	runtime.LockOSThread()
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	spec, err := readSpec[Spec](3)
	if err == nil {
		err = become(spec)
	}
	_, _ = unix.Write(4, []byte(err.Error())) // nobody else to tell
	return 127
}

func readSpec[T any](fd int) (T, error) {
	var v T
	f := os.NewFile(uintptr(fd), "spec")
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return v, fmt.Errorf("read specification: %w", err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return v, fmt.Errorf("read specification: %w", err)
	}
	return v, nil
}

// become makes the container around this process and executes the application.
func become(spec Spec) error {
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := buildRoot(spec); err != nil {
		return err
	}
	if err := enterRoot(spec); err != nil {
		return err
	}
	if spec.Dir == "" {
		spec.Dir = "/"
	}
	if err := os.Chdir(spec.Dir); err != nil {
		return fmt.Errorf("workingDir: %w", err)
	}
	path, err := lookPath(spec.Args[0], spec.Env)
	if errors.Is(err, os.ErrNotExist) && len(spec.Fallback) > 0 {
		spec.Args = spec.Fallback
		path, err = lookPath(spec.Args[0], spec.Env)
	}
	if err != nil {
		return err
	}
	if err := dropPrivileges(); err != nil {
		return err
	}
	if err := unix.Exec(path, spec.Args, spec.Env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// lookPath finds the program as execvp does, with the container's own PATH.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if _, err := os.Stat(name); err != nil {
			return "", fmt.Errorf("run %s: %w", name, err)
		}
		return name, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for dir := range strings.SplitSeq(path, ":") {
		file := dir + "/" + name
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("run %s: %w in PATH %s", name, os.ErrNotExist, path)
}

// containerCaps are the capabilities that a container's root usually has. They
// hold inside its own user namespace only.
var containerCaps = map[uintptr]bool{
	unix.CAP_CHOWN: true, unix.CAP_DAC_OVERRIDE: true, unix.CAP_FSETID: true, unix.CAP_FOWNER: true,
	unix.CAP_MKNOD: true, unix.CAP_NET_RAW: true, unix.CAP_SETGID: true, unix.CAP_SETUID: true,
	unix.CAP_SETFCAP: true, unix.CAP_SETPCAP: true, unix.CAP_NET_BIND_SERVICE: true,
	unix.CAP_SYS_CHROOT: true, unix.CAP_KILL: true, unix.CAP_AUDIT_WRITE: true,
}

// dropPrivileges takes from this thread what the application must not have;
// above all CAP_SYS_ADMIN, with which it could unmount what hides the node.
func dropPrivileges() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if containerCaps[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	return nil
}
