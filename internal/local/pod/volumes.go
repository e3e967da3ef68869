package pod

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lateen.dev/lateen/internal/local/manifest"
	"lateen.dev/lateen/internal/local/shim"
)

// volumes are a pod's ConfigMaps, Secrets and empty directories, in the node's
// memory. ConfigMaps and Secrets have the layout that kubelet gives them, so
// that a running process sees a change as one atomic swap:
//
//	NAME/..2026_11_23_00_00_00.1/key   the content
//	NAME/..data -> ..2026_11_23_…      replaced by rename
//	NAME/key -> ..data/key
type volumes struct {
	env *Env
	pod *manifest.Pod
	dir string

	mu       sync.Mutex
	written  map[string]map[string]file // by volume
	mounted  []string
	versions int
}

// file is one file of a volume.
type file struct {
	data string
	mode os.FileMode
}

func newVolumes(env *Env, pod *manifest.Pod) *volumes {
	return &volumes{
		env: env, pod: pod, dir: filepath.Join(env.VolumeDir, pod.Metadata.UID),
		written: map[string]map[string]file{},
	}
}

// prepare makes all volumes. It is repeated until it succeeds.
func (v *volumes) prepare() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := os.MkdirAll(v.dir, 0o755); err != nil {
		return fmt.Errorf("prepare volumes: %w", err)
	}
	for i := range v.pod.Spec.Volumes {
		if err := v.one(&v.pod.Spec.Volumes[i]); err != nil {
			return fmt.Errorf("volume %s: %w", v.pod.Spec.Volumes[i].Name, err)
		}
	}
	return nil
}

// refresh writes what has changed since.
func (v *volumes) refresh() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range v.pod.Spec.Volumes {
		vol := &v.pod.Spec.Volumes[i]
		if v.written[vol.Name] == nil {
			continue // not prepared yet, or not of a kind that changes
		}
		files, err := v.content(vol)
		if err != nil {
			// The object is gone: the pod keeps what it has, as with kubelet.
			v.env.Log.Info("keep the last content of a volume", "pod", v.pod.Metadata.Name, "error", err)
			continue
		}
		if err := v.write(vol.Name, files); err != nil {
			return fmt.Errorf("volume %s: %w", vol.Name, err)
		}
	}
	return nil
}

func (v *volumes) one(vol *manifest.Volume) error {
	dir := filepath.Join(v.dir, vol.Name)
	switch {
	case vol.EmptyDir != nil:
		return v.emptyDir(dir, vol.EmptyDir)
	case vol.ConfigMap == nil && vol.Secret == nil:
		return errors.New("only configMap, secret and emptyDir volumes are supported on one machine")
	}
	files, err := v.content(vol)
	if err != nil {
		return err
	}
	return v.write(vol.Name, files)
}

func (v *volumes) emptyDir(dir string, e *manifest.EmptyDirVolume) error {
	err := os.Mkdir(dir, 0o777)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(dir, 0o777) // whatever the umask says
	}
	if err != nil || e.SizeLimit == "" {
		return err
	}
	size, err := e.SizeLimit.Value()
	if err != nil {
		return fmt.Errorf("sizeLimit: %w", err)
	}
	opts := fmt.Sprintf("mode=0777,size=%d", int64(size))
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("mount emptyDir: %w", err)
	}
	v.mounted = append(v.mounted, dir)
	return nil
}

// content returns the files a ConfigMap or Secret volume should have.
func (v *volumes) content(vol *manifest.Volume) (map[string]file, error) {
	ns := v.pod.Metadata.Namespace
	data := map[string]string{}
	var items []manifest.KeyToPath
	var mode *int32
	switch {
	case vol.ConfigMap != nil:
		items, mode = vol.ConfigMap.Items, vol.ConfigMap.DefaultMode
		cm := v.env.Objects.ConfigMap(ns, vol.ConfigMap.Name)
		if cm == nil && !vol.ConfigMap.Optional {
			return nil, fmt.Errorf("ConfigMap/%s.%s does not exist", vol.ConfigMap.Name, ns)
		}
		if cm != nil {
			maps.Copy(data, cm.Data)
			for k, b := range cm.BinaryData {
				data[k] = string(b)
			}
		}
	case vol.Secret != nil:
		items, mode = vol.Secret.Items, vol.Secret.DefaultMode
		s := v.env.Objects.Secret(ns, vol.Secret.SecretName)
		if s == nil && !vol.Secret.Optional {
			return nil, fmt.Errorf("object Secret/%s.%s does not exist", vol.Secret.SecretName, ns)
		}
		if s != nil {
			for k, b := range s.Data {
				data[k] = string(b)
			}
			maps.Copy(data, s.StringData)
		}
	}
	return project(data, items, mode)
}

// project applies items and modes.
func project(data map[string]string, items []manifest.KeyToPath, mode *int32) (map[string]file, error) {
	def := os.FileMode(0o644)
	if mode != nil {
		def = os.FileMode(*mode) & os.ModePerm
	}
	out := map[string]file{}
	if items == nil {
		for k, d := range data {
			out[k] = file{d, def}
		}
		return out, nil
	}
	for _, it := range items {
		d, ok := data[it.Key]
		if !ok {
			return nil, fmt.Errorf("there is no key %q", it.Key)
		}
		if !filepath.IsLocal(it.Path) {
			return nil, fmt.Errorf("path %q leaves the volume", it.Path)
		}
		f := file{d, def}
		if it.Mode != nil {
			f.mode = os.FileMode(*it.Mode) & os.ModePerm
		}
		out[filepath.Clean(it.Path)] = f
	}
	return out, nil
}

// write makes the files the content of the volume in one step.
func (v *volumes) write(name string, files map[string]file) error {
	if old, ok := v.written[name]; ok && maps.Equal(old, files) {
		return nil
	}
	dir := filepath.Join(v.dir, name)
	v.versions++
	version := fmt.Sprintf("..%s.%d", time.Now().UTC().Format("2006_01_02_15_04_05"), v.versions)
	for path, f := range files {
		full := filepath.Join(dir, version, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(full, []byte(f.data), f.mode); err != nil {
			return err
		}
		if err := os.Chmod(full, f.mode); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
		return err
	}
	data := filepath.Join(dir, "..data")
	old, _ := os.Readlink(data) // none the first time
	if err := os.Symlink(version, data+"_tmp"); err != nil {
		return err
	}
	if err := os.Rename(data+"_tmp", data); err != nil {
		return err
	}
	if err := link(dir, files); err != nil {
		return err
	}
	v.written[name] = files
	if old != "" {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}

// link keeps one visible link per top-level name.
func link(dir string, files map[string]file) error {
	want := map[string]bool{}
	for path := range files {
		top, _, _ := strings.Cut(path, "/")
		want[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !want[e.Name()] && !strings.HasPrefix(e.Name(), "..") {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for top := range want {
		err := os.Symlink(filepath.Join("..data", top), filepath.Join(dir, top))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// mounts returns the binds of a container.
func (v *volumes) mounts(c *manifest.Container) ([]shim.Mount, error) {
	var out []shim.Mount
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(v.pod.Spec.Volumes, func(vol manifest.Volume) bool { return vol.Name == m.Name })
		if i < 0 {
			return nil, fmt.Errorf("volumeMount %s: the pod has no volume %q", m.MountPath, m.Name)
		}
		src := filepath.Join(v.dir, m.Name)
		if m.SubPath != "" {
			if !filepath.IsLocal(m.SubPath) {
				return nil, fmt.Errorf("volumeMount %s: subPath %q leaves the volume", m.MountPath, m.SubPath)
			}
			src = filepath.Join(src, m.SubPath)
			if v.pod.Spec.Volumes[i].EmptyDir != nil {
				if err := os.MkdirAll(src, 0o777); err != nil {
					return nil, fmt.Errorf("volumeMount %s: %w", m.MountPath, err)
				}
			}
		}
		// ConfigMaps and Secrets are read-only always, as in Kubernetes.
		readOnly := m.ReadOnly || v.pod.Spec.Volumes[i].EmptyDir == nil
		out = append(out, shim.Mount{Source: src, Target: m.MountPath, ReadOnly: readOnly})
	}
	return out, nil
}

func (v *volumes) remove() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range v.mounted {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return os.RemoveAll(v.dir)
}
