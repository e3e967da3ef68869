package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// fresh are top-level entries that a container never shares with the host. A
// fresh /run keeps out nscd, systemd-resolved, D-Bus and docker.sock, which all
// would go around the pod's own DNS or walls.
var fresh = []string{"proc", "sys", "dev", "tmp", "run", "lost+found"}

// tree is a root file system being built.
type tree struct {
	root    string // the new root
	upper   string // upper and work directories of overlays
	lower   string // where the files come from: "/" or an unpacked image
	overlay map[string]bool
	n       int
}

// buildRoot mounts the container's file system under spec.Staging.
func buildRoot(spec Spec) error {
	if err := mount("tmpfs", spec.Staging, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	t := &tree{
		root: spec.Staging + "/root", upper: spec.Staging + "/upper",
		lower: "/", overlay: map[string]bool{},
	}
	if spec.RootFS != "" {
		t.lower = spec.RootFS
	}
	for _, d := range []string{t.root, t.upper} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("build root: %w", err)
		}
	}
	if err := mount("tmpfs", t.root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	for _, step := range []func() error{
		t.copyTop, t.proc, t.sys, t.dev, t.scratch,
		func() error { return t.volumes(spec.Mounts) },
		func() error { return t.files(spec.Files) },
		func() error { return t.hide(spec.Hide) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if spec.ReadOnlyRoot {
		return t.readOnly()
	}
	return nil
}

func mount(src, dst, typ string, flags uintptr, data string) error {
	if err := unix.Mount(src, dst, typ, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", src, dst, err)
	}
	return nil
}

// copyTop gives the new root the top-level entries of the lower one: links as
// links, directories as overlays, so that writes succeed and vanish with the
// container.
func (t *tree) copyTop() error {
	entries, err := os.ReadDir(t.lower)
	if err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	for _, e := range entries {
		if slices.Contains(fresh, e.Name()) {
			continue
		}
		if err := t.place("/"+e.Name(), e.Type()); err != nil {
			return err
		}
	}
	return nil
}

// place puts the lower entry at path into the new root.
func (t *tree) place(path string, typ os.FileMode) error {
	src, dst := filepath.Join(t.lower, path), t.root+path
	switch {
	case typ&os.ModeSymlink != 0:
		to, err := os.Readlink(src)
		if err != nil {
			return nil // gone meanwhile
		}
		return wrap(os.Symlink(to, dst))
	case typ.IsDir():
		if err := os.Mkdir(dst, 0o755); err != nil {
			return wrap(err)
		}
		if t.tryOverlay(path) == nil {
			return nil
		}
		return t.bindReadOnly(src, dst)
	case typ.IsRegular():
		if err := os.WriteFile(dst, nil, 0o644); err != nil {
			return wrap(err)
		}
		return t.bindReadOnly(src, dst)
	}
	return nil // sockets and devices stay outside
}

func wrap(err error) error {
	if err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	return nil
}

// tryOverlay mounts an overlay over the lower directory. It is refused where the
// directory has mounts of its own below.
func (t *tree) tryOverlay(path string) error {
	t.n++
	up := fmt.Sprintf("%s/%d", t.upper, t.n)
	for _, d := range []string{up, up + "/u", up + "/w"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	lower := filepath.Join(t.lower, path)
	if strings.ContainsAny(lower, ",:\\") {
		return errors.New("name not fit for an overlay option")
	}
	opts := "userxattr,lowerdir=" + lower + ",upperdir=" + up + "/u,workdir=" + up + "/w"
	if err := unix.Mount("overlay", t.root+path, "overlay", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return err
	}
	t.overlay[path] = true
	return nil
}

// bindReadOnly binds src with everything mounted below it, read-only, so that a
// pod cannot harm the host's files.
func (t *tree) bindReadOnly(src, dst string) error {
	if err := unix.Mount(src, dst, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", src, err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(unix.AT_FDCWD, dst, unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", dst, err)
	}
	return nil
}

// proc mounts the container's own /proc. What the kernel lets the owner of a
// file write there without any capability is bound read-only.
func (t *tree) proc() error {
	dst := t.root + "/proc"
	if err := os.Mkdir(dst, 0o555); err != nil {
		return wrap(err)
	}
	if err := mount("proc", dst, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	for _, p := range []string{"/sys", "/sysrq-trigger", "/irq", "/bus", "/fs"} {
		if _, err := os.Stat(dst + p); err != nil {
			continue
		}
		if err := t.bindReadOnly(dst+p, dst+p); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) sys() error {
	if err := os.Mkdir(t.root+"/sys", 0o555); err != nil {
		return wrap(err)
	}
	return t.bindReadOnly("/sys", t.root+"/sys")
}

// dev makes a minimal /dev: the host's has disks in it.
func (t *tree) dev() error {
	dev := t.root + "/dev"
	if err := os.Mkdir(dev, 0o755); err != nil {
		return wrap(err)
	}
	if err := mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		f := dev + "/" + name
		if err := os.WriteFile(f, nil, 0o666); err != nil {
			return wrap(err)
		}
		if err := unix.Mount("/dev/"+name, f, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /dev/%s: %w", name, err)
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(to, dev+"/"+name); err != nil {
			return wrap(err)
		}
	}
	for dir, typ := range map[string]string{"shm": "tmpfs", "pts": "devpts", "mqueue": "mqueue"} {
		if err := os.Mkdir(dev+"/"+dir, 0o755); err != nil {
			return wrap(err)
		}
		opts := map[string]string{"tmpfs": "mode=1777", "devpts": "newinstance,ptmxmode=0666,mode=0620"}[typ]
		err := unix.Mount(typ, dev+"/"+dir, typ, unix.MS_NOSUID|unix.MS_NOEXEC, opts)
		if err != nil && typ != "mqueue" { // message queues may be missing from the kernel
			return fmt.Errorf("mount %s on /dev/%s: %w", typ, dir, err)
		}
	}
	return nil
}

// scratch makes /tmp and /run. /tmp is a file system of its own, so that it
// stays writable under a read-only root.
func (t *tree) scratch() error {
	for _, d := range []string{"/tmp", "/run"} {
		if err := os.Mkdir(t.root+d, 0o755); err != nil {
			return wrap(err)
		}
		if err := mount("tmpfs", t.root+d, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return err
		}
	}
	// NixOS keeps every program behind this link.
	const nix = "/run/current-system"
	if to, err := os.Readlink(nix); err == nil && t.lower == "/" {
		return wrap(os.Symlink(to, t.root+nix))
	}
	return nil
}

// volumes binds the volumes in order of depth, so that one may lie in another.
func (t *tree) volumes(mounts []Mount) error {
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b Mount) int {
		return strings.Count(filepath.Clean(a.Target), "/") - strings.Count(filepath.Clean(b.Target), "/")
	})
	for _, m := range mounts {
		if err := t.volume(m); err != nil {
			return fmt.Errorf("volume at %s: %w", m.Target, err)
		}
	}
	return nil
}

func (t *tree) volume(m Mount) error {
	st, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	target := filepath.Clean("/" + m.Target)
	if err := t.ensure(target, st.IsDir()); err != nil {
		return err
	}
	dst := t.root + t.resolve(target)
	if err := unix.Mount(m.Source, dst, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if m.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, dst, unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("set mount attributes: %w", err)
	}
	return nil
}

// resolve follows symbolic links of the container's root, such as /var/run, so
// that a path is never followed out of it.
func (t *tree) resolve(path string) string {
	done, rest := "", strings.Split(strings.Trim(path, "/"), "/")
	for range 255 {
		if len(rest) == 0 {
			break
		}
		next := done + "/" + rest[0]
		to, err := os.Readlink(t.root + next)
		if err != nil {
			done, rest = next, rest[1:]
			continue
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(done, to)
		}
		done, rest = "", append(strings.Split(strings.Trim(filepath.Clean("/"+to), "/"), "/"), rest[1:]...)
		if rest[0] == "" {
			rest = rest[1:]
		}
	}
	return done
}

// ensure makes path exist as a directory or a file. A read-only bind on the way
// is opened into a directory of its own.
func (t *tree) ensure(path string, dir bool) error {
	path = t.resolve(path)
	if st, err := os.Lstat(t.root + path); err == nil {
		if st.IsDir() != dir {
			return fmt.Errorf("%s exists and is not of the same kind as the volume", path)
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != "/" {
		if err := t.ensure(parent, true); err != nil {
			return err
		}
	}
	make1 := func() error {
		if dir {
			return os.Mkdir(t.root+path, 0o755)
		}
		return os.WriteFile(t.root+path, nil, 0o644)
	}
	err := make1()
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		if err := t.open(parent); err != nil {
			return err
		}
		err = make1()
	}
	return wrap(err)
}

// open replaces the directory at path, which cannot be written, by a writable
// one with the same entries.
func (t *tree) open(path string) error {
	if t.tryOverlay(path) == nil {
		return nil
	}
	lower := filepath.Join(t.lower, path)
	entries, err := os.ReadDir(lower)
	if err != nil {
		return wrap(err)
	}
	if err := mount("tmpfs", t.root+path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	for _, e := range entries {
		if err := t.place(filepath.Join(path, e.Name()), e.Type()); err != nil {
			return err
		}
	}
	return nil
}

// files writes the container's own files over whatever the host has there: a
// link, a bind or a file.
func (t *tree) files(files map[string]string) error {
	for path, content := range files {
		dir := filepath.Dir(path)
		if err := t.ensure(dir, true); err != nil {
			return err
		}
		// Not resolved: /etc/resolv.conf is often a link into /run.
		dst := t.root + t.resolve(dir) + "/" + filepath.Base(path)
		err := replaceFile(dst, content)
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			if err := t.open(dir); err != nil {
				return err
			}
			err = replaceFile(dst, content)
		}
		if errors.Is(err, unix.EBUSY) { // a bind of open, above
			if err = unix.Unmount(dst, unix.MNT_DETACH); err == nil {
				err = replaceFile(dst, content)
			}
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}

func replaceFile(path, content string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

// hide covers paths with an empty read-only file system.
func (t *tree) hide(paths []string) error {
	for _, p := range paths {
		dst := t.root + t.resolve(p)
		if st, err := os.Stat(dst); err != nil || !st.IsDir() {
			continue // not visible in this root
		}
		if err := mount("tmpfs", dst, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "mode=0555,size=4k"); err != nil {
			return fmt.Errorf("hide %s: %w", p, err)
		}
	}
	return nil
}

// readOnly honours readOnlyRootFilesystem: the root and each overlay, one by one;
// volumes, /tmp and /dev stay as they are.
func (t *tree) readOnly() error {
	paths := []string{""}
	for p := range t.overlay {
		paths = append(paths, p)
	}
	for _, p := range paths {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, t.root+p, 0, attr); err != nil {
			return fmt.Errorf("make %s/ read-only: %w", p, err)
		}
	}
	return nil
}

// enterRoot makes the new root the root and lets go of the old one.
func enterRoot(spec Spec) error {
	if err := os.Chdir(spec.Staging + "/root"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter root: pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("enter root: let go of the old one: %w", err)
	}
	return wrap(os.Chdir("/"))
}
