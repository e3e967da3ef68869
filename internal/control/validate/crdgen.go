//go:build ignore

// Crdgen writes constraints.json: what the CustomResourceDefinitions of the
// istio.io/api module demand beyond the types of fields, which protobuf's
// descriptors already tell. Run it by `go generate` after that module changes.
package main

import (
	"encoding/json"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

type object = map[string]any

func main() {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "istio.io/api").Output()
	if err != nil {
		log.Fatal(err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(out)), "kubernetes/customresourcedefinitions.gen.yaml"))
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	all := object{}
	for d := yaml.NewDecoder(f); ; {
		var crd object
		if d.Decode(&crd) != nil {
			break
		}
		if crd == nil {
			continue
		}
		spec := crd["spec"].(object)
		for _, v := range spec["versions"].([]any) {
			v := v.(object)
			if v["storage"] != true {
				continue
			}
			root := v["schema"].(object)["openAPIV3Schema"].(object)["properties"].(object)["spec"].(object)
			all[spec["names"].(object)["kind"].(string)] = reduce(root)
		}
	}
	data, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("constraints.json", append(data, '\n'), 0o644); err != nil {
		log.Fatal(err)
	}
}

var kept = map[string]string{
	"required": "required", "minLength": "minLength", "maxLength": "maxLength", "minItems": "minItems",
	"maxItems": "maxItems", "minProperties": "minProperties", "maxProperties": "maxProperties", "pattern": "pattern",
}

// reduce keeps the constraints of a schema and of what is under it; nil if
// there are none.
func reduce(s object) object {
	out := object{}
	for from, to := range kept {
		if v, ok := s[from]; ok {
			out[to] = v
		}
	}
	if v, ok := s["minimum"].(int); ok && v != 0 {
		out["minimum"] = v
	}
	// The bounds of the 32-bit types are the decoder's to check.
	if v, ok := s["maximum"].(int); ok && v != 4294967295 {
		out["maximum"] = v
	}
	if keys, ok := s["x-kubernetes-list-map-keys"]; ok {
		out["unique"] = keys
	}
	if rules, ok := s["x-kubernetes-validations"].([]any); ok {
		var list []object
		for _, r := range rules {
			r := r.(object)
			list = append(list, object{"rule": strings.Join(strings.Fields(r["rule"].(string)), " "), "message": r["message"]})
		}
		out["rules"] = list
	}
	if props, ok := s["properties"].(object); ok {
		fields := object{}
		for name, p := range props {
			if r := reduce(p.(object)); r != nil {
				fields[name] = r
			}
		}
		if len(fields) > 0 {
			out["fields"] = fields
		}
	}
	for _, under := range []string{"items", "additionalProperties"} {
		if p, ok := s[under].(object); ok {
			if r := reduce(p); r != nil {
				out["each"] = r
			}
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
