package resource

import (
	"strconv"
	"strings"
)

// A path names a field the way people write it: "spec.http[1].route[0].weight".
// Keys that are not plain words stand in brackets: metadata.labels["app.io/x"].
// An "@" leaves the manifest for the YAML that a string field holds:
// data.mesh@defaultConfig.tracing, data["config.yaml"]@exporters.jaeger.

// Field returns path extended by a mapping key.
func Field(path, key string) string {
	if !plainKey(key) {
		return path + "[" + strconv.Quote(key) + "]"
	}
	if path == "" || strings.HasSuffix(path, "@") {
		return path + key
	}
	return path + "." + key
}

// Item returns path extended by a list index.
func Item(path string, i int) string {
	return path + "[" + strconv.Itoa(i) + "]"
}

func plainKey(key string) bool {
	if key == "" {
		return false
	}
	for _, r := range key {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '-', r == '/':
		default:
			return false
		}
	}
	return true
}

// step is one element of a path: a key, or an index when key is "" and index
// is not negative, or the entry into embedded YAML.
type step struct {
	key      string
	index    int
	embedded bool
}

// splitPath parses a path. What it cannot read ends the result: the caller then
// lands on the nearest known ancestor.
func splitPath(path string) []step {
	var steps []step
	for path != "" {
		switch {
		case path[0] == '.':
			path = path[1:]
		case path[0] == '@':
			steps = append(steps, step{embedded: true, index: -1})
			path = path[1:]
		case strings.HasPrefix(path, `["`):
			quoted, err := strconv.QuotedPrefix(path[1:])
			if err != nil {
				return steps
			}
			key, _ := strconv.Unquote(quoted)
			steps = append(steps, step{key: key, index: -1})
			path = strings.TrimPrefix(path[1+len(quoted):], "]")
		case path[0] == '[':
			end := strings.IndexByte(path, ']')
			if end < 0 {
				return steps
			}
			i, err := strconv.Atoi(path[1:end])
			if err != nil || i < 0 {
				return steps
			}
			steps = append(steps, step{index: i})
			path = path[end+1:]
		default:
			end := strings.IndexAny(path, ".[@")
			if end < 0 {
				end = len(path)
			}
			steps = append(steps, step{key: path[:end], index: -1})
			path = path[end:]
		}
	}
	return steps
}
