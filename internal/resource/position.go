package resource

// positions maps the fields of an object to their places in its file.
type positions struct{}
