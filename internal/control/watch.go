package control

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"lateen.dev/lateen/internal/api"
	"lateen.dev/lateen/internal/resource"
)

// watcher is one follower of the desired objects. A slow one receives the sum
// of what it missed: at most one pending event for each object.
type watcher struct {
	kinds   map[resource.Kind]bool // empty means all
	pending map[resource.Key]*resource.Object
	notify  chan struct{}
}

func (w *watcher) wants(k resource.Kind) bool { return len(w.kinds) == 0 || w.kinds[k] }

// tellWatchers queues what changed; a nil object stands for one that went away.
func (c *controller) tellWatchers(prev, next *View) {
	if prev == nil {
		return
	}
	for w := range c.watchers {
		for k, o := range next.Objects {
			if prev.Objects[k] != o && w.wants(k.Kind) {
				w.pending[k] = o
			}
		}
		for k := range prev.Objects {
			if next.Objects[k] == nil && w.wants(k.Kind) {
				w.pending[k] = nil
			}
		}
		if len(w.pending) > 0 {
			select {
			case w.notify <- struct{}{}:
			default: // it has been told already
			}
		}
	}
}

// Watch implements api.Backend.
func (b *backend) Watch(ctx context.Context, kinds []string, emit func(api.Event) error) error {
	w := &watcher{kinds: make(map[resource.Kind]bool), pending: make(map[resource.Key]*resource.Object), notify: make(chan struct{}, 1)}
	for _, k := range kinds {
		w.kinds[resource.Kind(k)] = true
	}
	if !b.c.call(ctx, func() {
		for k, o := range b.c.current.Load().Objects {
			if w.wants(k.Kind) {
				w.pending[k] = o
			}
		}
		b.c.watchers[w] = struct{}{}
	}) {
		return ctx.Err()
	}
	// The owner may have stopped, but then nothing is queued any more.
	defer b.c.call(context.WithoutCancel(ctx), func() { delete(b.c.watchers, w) })
	for synced := false; ; {
		batch := b.take(ctx, w)
		for _, k := range slices.SortedFunc(maps.Keys(batch), compareKeys) {
			e, err := event(k, batch[k])
			if err != nil {
				return err
			}
			if err := emit(e); err != nil {
				return err
			}
		}
		if !synced {
			synced = true
			if err := emit(api.Event{Type: api.Synced}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.notify:
		}
	}
}

// take empties a watcher's queue.
func (b *backend) take(ctx context.Context, w *watcher) map[resource.Key]*resource.Object {
	var batch map[resource.Key]*resource.Object
	b.c.call(ctx, func() {
		batch, w.pending = w.pending, make(map[resource.Key]*resource.Object)
	})
	return batch
}

func event(k resource.Key, o *resource.Object) (api.Event, error) {
	e := api.Event{Type: api.Delete, Key: wireKey(k)}
	if o == nil {
		return e, nil
	}
	data, err := o.JSON()
	if err != nil {
		return api.Event{}, fmt.Errorf("encode %v: %w", k, err)
	}
	e.Type, e.Object, e.Source = api.Put, data, place(o)
	return e, nil
}

// place is where an object came from, for people: file:line where known.
func place(o *resource.Object) string {
	if p := o.Pos("metadata.name"); p.File != "" && o.Source != sourceLocal && o.Source != sourceDefault {
		p.Column = 0
		return p.String()
	}
	return o.Source
}

func wireKey(k resource.Key) api.ObjectKey {
	return api.ObjectKey{Kind: string(k.Kind), Namespace: k.Namespace, Name: k.Name}
}

func keyOf(k api.ObjectKey) resource.Key {
	return resource.Key{Kind: resource.Kind(k.Kind), Namespace: k.Namespace, Name: k.Name}
}
