package mesh

// Allows reports whether something that lives in namespace owner is visible to
// proxies of the given namespace.
func (v Visibility) Allows(owner, namespace string) bool {
	return v.all || v.own && owner == namespace || v.namespaces[namespace]
}

// Public reports whether every namespace sees it.
func (v Visibility) Public() bool { return v.all }

// parseVisibility decodes exportTo; an empty list means the mesh's default, and
// an empty default means everyone.
func parseVisibility(exportTo, byDefault []string) Visibility {
	if len(exportTo) == 0 {
		exportTo = byDefault
	}
	if len(exportTo) == 0 {
		return Visibility{all: true}
	}
	var v Visibility
	for _, e := range exportTo {
		switch e {
		case "*":
			v.all = true
		case ".":
			v.own = true
		case "~":
		default:
			if v.namespaces == nil {
				v.namespaces = map[string]bool{}
			}
			v.namespaces[e] = true
		}
	}
	return v
}
