package control

import (
	"cmp"
	"encoding/json"

	"lateen.dev/lateen/internal/resource"
)

// rootNamespace holds mesh-wide configuration.
const rootNamespace = "istio-system"

// sourceDefault is the Source of objects that nobody wrote.
const sourceDefault = "default"

// defaults makes what a cluster would have: every namespace that something is
// in, with its service account "default". The namespace "default" counts as
// labelled for injection; that is the first step of Istio's quick start.
type defaults struct {
	made map[resource.Key]*resource.Object // so that an unchanged object stays the same
}

// add completes objects in place.
func (d *defaults) add(objects map[resource.Key]*resource.Object) {
	namespaces := map[string]bool{"default": true, rootNamespace: true}
	for k := range objects {
		if k.Kind == resource.Namespace {
			namespaces[k.Name] = true
		} else if k.Namespace != "" {
			namespaces[k.Namespace] = true
		}
	}
	for ns := range namespaces {
		var labels map[string]string
		if ns == "default" {
			labels = map[string]string{"istio-injection": "enabled"}
		}
		d.ensure(objects, resource.Key{Kind: resource.Namespace, Name: ns}, labels)
		d.ensure(objects, resource.Key{Kind: resource.ServiceAccount, Namespace: ns, Name: "default"}, nil)
	}
}

func (d *defaults) ensure(objects map[resource.Key]*resource.Object, k resource.Key, labels map[string]string) {
	if objects[k] != nil {
		return
	}
	if d.made == nil {
		d.made = make(map[resource.Key]*resource.Object)
	}
	if d.made[k] == nil {
		meta := map[string]any{"name": k.Name}
		if k.Namespace != "" {
			meta["namespace"] = k.Namespace
		}
		if labels != nil {
			meta["labels"] = labels
		}
		data, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": string(k.Kind), "metadata": meta})
		if err != nil {
			return // strings always encode
		}
		o, _ := resource.DecodeJSON(sourceDefault, data)
		if o == nil {
			return // a namespace of another object that is no valid name; validation says so
		}
		d.made[k] = o
	}
	objects[k] = d.made[k]
}

func compareKeys(a, b resource.Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
