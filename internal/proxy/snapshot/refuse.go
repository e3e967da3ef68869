package snapshot

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// This file holds the rule by which resources are refused: a field that is set
// and not listed by the function that compiles its message makes the resource
// unusable, because doing less than was asked may open what should be closed.
// Whoever adds a field to a list has applied it, or has a reason why it may be
// left out, written beside the list.

// Rejected is a resource that was refused; its last good version stays in force.
type Rejected struct {
	// Type is the resource's type URL, Name its name.
	Type, Name string
	// Reason is one line, fit to print: field path and what is wrong with it.
	Reason string
}

// String returns "name: reason".
func (r Rejected) String() string { return r.Name + ": " + r.Reason }

// only refuses fields of m that are set and not among known (field names
// separated by blanks), and fields that this version does not know at all.
func only(m proto.Message, known string) error {
	r := m.ProtoReflect()
	if len(r.GetUnknown()) > 0 {
		num, _, _ := protowire.ConsumeTag(r.GetUnknown())
		return fmt.Errorf("%s: field number %d is not known to this version", r.Descriptor().Name(), num)
	}
	var err error
	known = " " + strings.Join(strings.Fields(known), " ") + " "
	r.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !strings.Contains(known, " "+string(f.Name())+" ") {
			err = fmt.Errorf("%s is not supported", f.Name())
			return false
		}
		return true
	})
	return err
}

// at puts a field path in front of an error.
func at(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	path := fmt.Sprintf(format, args...)
	if strings.HasPrefix(err.Error(), "[") {
		return fmt.Errorf("%s%w", path, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

const typePrefix = "type.googleapis.com/"

// typeName returns the message name in an Any; for a TypedStruct, the name of
// the message that it stands for.
func typeName(a *anypb.Any) (string, error) {
	name := strings.TrimPrefix(a.GetTypeUrl(), typePrefix)
	if name != "udpa.type.v1.TypedStruct" && name != "xds.type.v3.TypedStruct" {
		return name, nil
	}
	// Only type_url (field 1) is of interest; the types that Istio wraps this
	// way have no Go package of their own.
	for b := a.GetValue(); len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return "", fmt.Errorf("TypedStruct: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if num == 1 && typ == protowire.BytesType {
			url, n := protowire.ConsumeString(b)
			if n < 0 {
				return "", fmt.Errorf("TypedStruct: %w", protowire.ParseError(n))
			}
			return strings.TrimPrefix(url, typePrefix), nil
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return "", fmt.Errorf("TypedStruct: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	return "", fmt.Errorf("TypedStruct has no type_url")
}

// decode unpacks an Any into m and says whether the type fits.
func decode(a *anypb.Any, m proto.Message) error {
	if want := m.ProtoReflect().Descriptor().FullName(); a.MessageName() != want {
		return fmt.Errorf("type %q, want %q", a.GetTypeUrl(), want)
	}
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		return fmt.Errorf("decode %s: %w", a.MessageName(), err)
	}
	return nil
}

// resource unpacks a resource that is either an Any or the message itself.
func resource[M proto.Message](m proto.Message, empty M) (M, error) {
	switch m := m.(type) {
	case *anypb.Any:
		return empty, decode(m, empty)
	case M:
		return m, nil
	}
	return empty, fmt.Errorf("unexpected message %T", m)
}
