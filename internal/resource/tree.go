package resource

// Tree returns the manifest as JSON values (map[string]any, []any, string,
// bool, float64, json.Number) as far as it could be decoded, with durations in
// protobuf's form ("1.500000000s"). Unlike Spec it tells a field that is spelled
// out with its zero value from one that is absent. The caller owns the result.
func (o *Object) Tree() map[string]any {
	info, ok := LookupKind(o.Kind)
	if !ok || o.fields.root == nil {
		return nil
	}
	w := &walker{object: o.Object(), pos: o.position, root: info.shape()}
	v, _ := w.value(o.fields.root, w.root, "")
	tree, _ := v.(map[string]any)
	return tree
}
