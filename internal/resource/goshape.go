package resource

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"reflect"
	"strings"
)

// goShape is the shape of a Go type as encoding/json sees it.
type goShape struct{ t reflect.Type }

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func typeShape(t reflect.Type) shape {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Interface {
		return opaque{}
	}
	return goShape{t}
}

func (g goShape) decodesItself() bool { return reflect.PointerTo(g.t).Implements(unmarshaler) }

func (g goShape) bytes() bool {
	return g.t.Kind() == reflect.Slice && g.t.Elem().Kind() == reflect.Uint8
}

func (g goShape) kind() shapeKind {
	switch {
	case g.decodesItself():
		return looseShape
	case g.bytes():
		return scalarShape
	}
	switch g.t.Kind() {
	case reflect.Struct:
		return objectShape
	case reflect.Slice, reflect.Array:
		return listShape
	case reflect.Map:
		return mapShape
	}
	return scalarShape
}

func (g goShape) field(name string) (shape, bool) {
	t, ok := jsonField(g.t, name)
	if !ok {
		return nil, false
	}
	return typeShape(t), true
}

// jsonField finds a field of a struct by its JSON name, in inlined structs too.
func jsonField(t reflect.Type, name string) (reflect.Type, bool) {
	if t.Kind() != reflect.Struct {
		return nil, false
	}
	for i := range t.NumField() {
		f := t.Field(i)
		tag, inline := jsonTag(f)
		switch {
		case inline:
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			if found, ok := jsonField(ft, name); ok {
				return found, true
			}
		case tag == name && tag != "":
			return f.Type, true
		}
	}
	return nil, false
}

// jsonTag returns the JSON name of a field, "" for none, and whether the field's
// own fields stand in its place.
func jsonTag(f reflect.StructField) (name string, inline bool) {
	tag := f.Tag.Get("json")
	name, _, _ = strings.Cut(tag, ",")
	switch {
	case name == "-" || !f.IsExported() && !f.Anonymous:
		return "", false
	case name == "" && f.Anonymous:
		return "", true
	case name == "":
		return f.Name, false
	}
	return name, false
}

func (g goShape) names() []string {
	if g.t.Kind() != reflect.Struct || g.decodesItself() {
		return nil
	}
	var names []string
	for i := range g.t.NumField() {
		f := g.t.Field(i)
		tag, inline := jsonTag(f)
		if inline {
			names = append(names, typeShape(f.Type).names()...)
		} else if tag != "" {
			names = append(names, tag)
		}
	}
	return names
}

func (g goShape) elem() shape {
	switch g.t.Kind() {
	case reflect.Slice, reflect.Array, reflect.Map:
		return typeShape(g.t.Elem())
	}
	return opaque{}
}

func (g goShape) id() any             { return g.t }
func (g goShape) oneof(string) string { return "" }

func (g goShape) check(s scalar) (any, string, string) {
	if s.tag == "!!null" {
		return nil, "", ""
	}
	if g.decodesItself() {
		return g.checkLoose(s)
	}
	if g.bytes() {
		if _, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s.text)); err != nil {
			return nil, "base64 text", "use stringData for plain text"
		}
		return strings.TrimSpace(s.text), "", ""
	}
	switch g.t.Kind() {
	case reflect.String:
		return checkString(s)
	case reflect.Bool:
		return checkBool(s)
	case reflect.Int32:
		return checkInt(s, math.MinInt32, math.MaxInt32, false)
	case reflect.Int, reflect.Int64:
		return checkInt(s, math.MinInt64, math.MaxInt64, false)
	case reflect.Uint16:
		return checkInt(s, 0, math.MaxUint16, false)
	case reflect.Uint8, reflect.Uint32:
		return checkInt(s, 0, math.MaxUint32, false)
	case reflect.Float32, reflect.Float64:
		return checkFloat(s, false)
	case reflect.Slice:
		return nil, "a list", `write it as a list: "- …" on a line of its own`
	}
	return nil, "an object", ""
}

// checkLoose lets the type itself try the value.
func (g goShape) checkLoose(s scalar) (any, string, string) {
	v := plainValue(s)
	data, err := json.Marshal(v)
	if err != nil {
		return nil, "a valid " + g.t.Name(), ""
	}
	if err := json.Unmarshal(data, reflect.New(g.t).Interface()); err != nil {
		return nil, "a valid " + g.t.Name(), ""
	}
	return v, "", ""
}
