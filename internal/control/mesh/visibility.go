package mesh

// Allows reports whether something that lives in namespace owner is visible to
// proxies of the given namespace.
func (v Visibility) Allows(owner, namespace string) bool {
	return v.all || v.own && owner == namespace || v.namespaces[namespace]
}
