package mesh

// Build makes a model of in. With a previous model it reuses what did not
// change and says in Diff what did; without one, Diff is Full. The result is
// the same either way.
func Build(in Input, prev *Mesh) (*Mesh, Diff) {
	panic("mesh: Build is not written yet")
}
