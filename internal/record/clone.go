package record

import "bytes"

// Clone returns a deep copy of a header's value.
func Clone(v any) any {
	switch v := v.(type) {
	case []byte:
		return bytes.Clone(v)
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = Clone(v[i])
		}
		return list
	case map[string]any:
		return CloneTable(v)
	}
	return v
}

// CloneTable returns a deep copy of headers; nil for nil.
func CloneTable(table map[string]any) map[string]any {
	if table == nil {
		return nil
	}
	out := make(map[string]any, len(table))
	for name, v := range table {
		out[name] = Clone(v)
	}
	return out
}
