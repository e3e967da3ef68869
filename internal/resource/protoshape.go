package resource

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// protoShape is the shape of a protobuf message in its JSON form.
type protoShape struct {
	md protoreflect.MessageDescriptor
	// snake says that original field names are accepted besides JSON names, as
	// protojson does and Kubernetes' structural schemas do not.
	snake bool
}

// protoValue is the shape of one field or member of a list or map.
type protoValue struct {
	fd    protoreflect.FieldDescriptor
	snake bool
}

func messageShape(md protoreflect.MessageDescriptor, snake bool) shape {
	return protoShape{md: md, snake: snake}
}

func fieldShape(fd protoreflect.FieldDescriptor, snake bool) shape {
	if fd.IsList() || fd.IsMap() {
		return protoRepeated{fd, snake}
	}
	return singularShape(fd, snake)
}

func singularShape(fd protoreflect.FieldDescriptor, snake bool) shape {
	if fd.Message() == nil {
		return protoValue{fd, snake}
	}
	switch fd.Message().FullName() {
	case "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue", "google.protobuf.Any":
		return opaque{}
	case "google.protobuf.Duration", "google.protobuf.Timestamp",
		"google.protobuf.BoolValue", "google.protobuf.StringValue", "google.protobuf.BytesValue",
		"google.protobuf.Int32Value", "google.protobuf.Int64Value", "google.protobuf.UInt32Value",
		"google.protobuf.UInt64Value", "google.protobuf.FloatValue", "google.protobuf.DoubleValue":
		return protoValue{fd, snake}
	}
	return protoShape{md: fd.Message(), snake: snake}
}

func (p protoShape) kind() shapeKind { return objectShape }

func (p protoShape) descriptor(name string) protoreflect.FieldDescriptor {
	if fd := p.md.Fields().ByJSONName(name); fd != nil {
		return fd
	}
	// RequestAuthentication's CRD spells both forms of this one field out.
	if p.snake || name == "jwks_uri" {
		return p.md.Fields().ByName(protoreflect.Name(name))
	}
	return nil
}

func (p protoShape) field(name string) (shape, bool) {
	fd := p.descriptor(name)
	if fd == nil {
		return nil, false
	}
	return fieldShape(fd, p.snake), true
}

func (p protoShape) names() []string {
	fields := p.md.Fields()
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = fields.Get(i).JSONName()
	}
	return names
}

func (p protoShape) elem() shape { return opaque{} }
func (p protoShape) id() any     { return p.md.FullName() }

func (p protoShape) check(scalar) (any, string, string) { return nil, "an object", "" }

func (p protoShape) oneof(name string) string {
	fd := p.descriptor(name)
	if fd == nil || fd.ContainingOneof() == nil || fd.ContainingOneof().IsSynthetic() {
		return ""
	}
	return string(fd.ContainingOneof().Name())
}

// protoRepeated is a list or map field.
type protoRepeated struct {
	fd    protoreflect.FieldDescriptor
	snake bool
}

func (p protoRepeated) kind() shapeKind {
	if p.fd.IsMap() {
		return mapShape
	}
	return listShape
}

func (p protoRepeated) field(string) (shape, bool) { return nil, false }
func (p protoRepeated) names() []string            { return nil }
func (p protoRepeated) id() any                    { return p.fd.FullName() }
func (p protoRepeated) oneof(string) string        { return "" }

func (p protoRepeated) elem() shape {
	if p.fd.IsMap() {
		return singularShape(p.fd.MapValue(), p.snake)
	}
	return singularShape(p.fd, p.snake)
}

func (p protoRepeated) check(scalar) (any, string, string) {
	if p.fd.IsMap() {
		return nil, "an object", ""
	}
	return nil, "a list", `write it as a list: "- …" on a line of its own`
}

func (p protoValue) kind() shapeKind            { return scalarShape }
func (p protoValue) field(string) (shape, bool) { return nil, false }
func (p protoValue) names() []string            { return nil }
func (p protoValue) elem() shape                { return opaque{} }
func (p protoValue) id() any                    { return p.fd.FullName() }
func (p protoValue) oneof(string) string        { return "" }

func (p protoValue) check(s scalar) (any, string, string) {
	if s.tag == "!!null" {
		return nil, "", ""
	}
	if md := p.fd.Message(); md != nil {
		switch md.FullName() {
		case "google.protobuf.Duration":
			return checkDuration(s)
		case "google.protobuf.Timestamp":
			if _, err := time.Parse(time.RFC3339Nano, s.text); err != nil {
				return nil, "a time such as 2026-01-31T12:00:00Z", ""
			}
			return s.text, "", ""
		}
		// A wrapper is its value.
		return checkKind(md.Fields().ByNumber(1), s, p.snake)
	}
	return checkKind(p.fd, s, p.snake)
}

func checkKind(fd protoreflect.FieldDescriptor, s scalar, lenient bool) (any, string, string) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return checkString(s)
	case protoreflect.BytesKind:
		if _, err := base64.StdEncoding.DecodeString(s.text); err != nil {
			return nil, "base64 text", ""
		}
		return s.text, "", ""
	case protoreflect.BoolKind:
		return checkBool(s)
	case protoreflect.EnumKind:
		return checkEnum(fd.Enum(), s)
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return checkFloat(s, lenient)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return checkInt(s, 0, math.MaxUint32, lenient)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return checkInt(s, 0, math.MaxInt64, lenient)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return checkInt(s, math.MinInt32, math.MaxInt32, lenient)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return checkInt(s, math.MinInt64, math.MaxInt64, lenient)
	}
	return nil, "an object", ""
}

func checkString(s scalar) (any, string, string) {
	if s.tag == "!!str" || s.quoted || s.tag == "!!timestamp" || s.tag == "!!binary" {
		return s.text, "", ""
	}
	return nil, "a text", fmt.Sprintf("put it in quotes: %q", s.text)
}

func checkBool(s scalar) (any, string, string) {
	if s.quoted {
		return nil, "true or false", "remove the quotes"
	}
	// YAML 1.1, which Kubernetes' own decoder reads, has these spellings too.
	switch strings.ToLower(s.text) {
	case "true", "yes", "on", "y":
		return true, "", ""
	case "false", "no", "off", "n":
		return false, "", ""
	}
	return nil, "true or false", ""
}

func checkInt(s scalar, lo, hi int64, lenient bool) (any, string, string) {
	if s.tag == "!!str" || s.quoted {
		if _, err := strconv.ParseInt(s.text, 10, 64); err != nil {
			return nil, "a whole number", ""
		}
		if !lenient {
			return nil, "a whole number", "remove the quotes"
		}
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(s.text, "_", ""), 0, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(s.text, 64)
		if ferr != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return nil, "a whole number", ""
		}
		n = int64(f)
	}
	if n < lo || n > hi {
		return nil, fmt.Sprintf("a whole number from %d to %d", lo, hi), ""
	}
	return json.Number(strconv.FormatInt(n, 10)), "", ""
}

func checkFloat(s scalar, lenient bool) (any, string, string) {
	if (s.tag == "!!str" || s.quoted) && !lenient {
		return nil, "a number", ""
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s.text, "_", ""), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, "a number", ""
	}
	return f, "", ""
}

func checkEnum(ed protoreflect.EnumDescriptor, s scalar) (any, string, string) {
	if ed.FullName() == "google.protobuf.NullValue" {
		return nil, "", ""
	}
	if ed.Values().ByName(protoreflect.Name(s.text)) != nil {
		return s.text, "", ""
	}
	if n, err := strconv.ParseInt(s.text, 10, 32); err == nil && !s.quoted {
		if v := ed.Values().ByNumber(protoreflect.EnumNumber(n)); v != nil {
			return string(v.Name()), "", ""
		}
	}
	names := make([]string, ed.Values().Len())
	for i := range names {
		names[i] = string(ed.Values().Get(i).Name())
	}
	hint := ""
	if near := nearest(strings.ToUpper(s.text), names); near != "" {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	return nil, "one of " + strings.Join(names, ", "), hint
}

// checkDuration reads a Go duration, which is what Istio's decoder reads too,
// and gives it in protobuf's JSON form.
func checkDuration(s scalar) (any, string, string) {
	d, err := time.ParseDuration(s.text)
	if err != nil {
		hint := ""
		if _, nerr := strconv.ParseFloat(s.text, 64); nerr == nil {
			hint = fmt.Sprintf("add a unit: %ss", s.text)
		}
		return nil, "a duration such as 1.5s, 200ms or 1h", hint
	}
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	return fmt.Sprintf("%s%d.%09ds", sign, d/time.Second, d%time.Second), "", ""
}

// opaque is a value without a schema.
type opaque struct{}

func (opaque) kind() shapeKind            { return anyShape }
func (opaque) field(string) (shape, bool) { return opaque{}, true }
func (opaque) names() []string            { return nil }
func (opaque) elem() shape                { return opaque{} }
func (opaque) id() any                    { return "any" }
func (opaque) oneof(string) string        { return "" }
func (opaque) check(s scalar) (any, string, string) {
	return plainValue(s), "", ""
}
