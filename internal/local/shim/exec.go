package shim

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/reap"
)

// ExecSpec is a command to run in a container that is running.
type ExecSpec struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir,omitempty"`
	UID  int      `json:"uid"`
	GID  int      `json:"gid"`
}

// Exec starts a command in the namespaces of the container whose first process
// is pid. The returned process is a helper that ends with the command's code and
// passes signals on.
//
// The command gets a user namespace of its own beside the container's, because a
// program with several threads cannot join one: it sees the same user but cannot
// trace the container's processes.
func Exec(r *reap.Reaper, spec ExecSpec, pid int, stdio [3]int) (*reap.Process, error) {
	specFD, err := memfd(spec)
	if err != nil {
		return nil, err
	}
	defer unix.Close(specFD)
	files := []uintptr{uintptr(stdio[0]), uintptr(stdio[1]), uintptr(stdio[2]), uintptr(specFD)}
	ns := map[string]int{}
	for _, name := range []string{"mnt", "net", "uts", "ipc", "pid"} {
		fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("enter the container: %w", err)
		}
		defer unix.Close(fd)
		ns[name] = fd
	}
	files = append(files, uintptr(ns["mnt"]))
	attr := &syscall.ProcAttr{Env: []string{}, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}}
	type result struct {
		p   *reap.Process
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // the thread ends here with the namespaces it joined
		for _, name := range []string{"net", "uts", "ipc", "pid"} {
			if err := unix.Setns(ns[name], 0); err != nil {
				done <- result{nil, fmt.Errorf("enter the container's %s namespace: %w", name, err)}
				return
			}
		}
		p, err := r.Start(Self, []string{"lateen-exec", RoleExec}, attr)
		done <- result{p, err}
	}()
	res := <-done
	return res.p, res.err
}

// ExecMain is the role RoleExec.
func ExecMain() int {
	runtime.LockOSThread()
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	spec, err := readSpec[ExecSpec](3)
	var pid int
	if err == nil {
		pid, err = startInside(spec)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 127
	}
	return follow(pid)
}

// startInside joins the container's mount namespace on this thread and forks the
// command there.
func startInside(spec ExecSpec) (int, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, fmt.Errorf("enter the container: %w", err)
	}
	if err := unix.Setns(4, unix.CLONE_NEWNS); err != nil {
		return 0, fmt.Errorf("enter the container's mount namespace: %w", err)
	}
	path, err := lookPath(spec.Args[0], spec.Env)
	if err != nil {
		return 0, err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("forbid new privileges: %w", err)
	}
	dir := spec.Dir
	if dir == "" {
		dir = "/"
	}
	pid, err := syscall.ForkExec(path, spec.Args, &syscall.ProcAttr{
		Dir: dir, Env: spec.Env, Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: spec.UID, HostID: 0, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: spec.GID, HostID: 0, Size: 1}},
		},
	})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", path, err)
	}
	return pid, nil
}

// follow passes signals to the command and waits for it.
func follow(pid int) int {
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	go func() {
		for s := range sigs {
			_ = unix.Kill(pid, s.(syscall.Signal)) // it may have ended
		}
	}()
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 127
		}
		break
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
