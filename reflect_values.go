package dispatcher

import (
	"bytes"
	"reflect"
	"strings"
	"unicode/utf8"
)

// The sender's side: from Go values to declared types and plain headers. Besides reflect_args.go the only production file
// that imports reflect (docs/adr/0005-reflect-in-two-files.md).

// inferArgument declares the type of a value of any type; see Args.
func inferArgument(v any) TaskArgument {
	rv := reflect.ValueOf(v)
	t := rv.Type()
	if k := scalarOf(t.Kind()); k != kindNone {
		return TaskArgument{scalarNames[k], rv.Convert(scalarTypes[k]).Interface()}
	}
	switch t.Kind() {
	case reflect.Slice:
		k := scalarOf(t.Elem().Kind())
		if k == kindUint8 {
			return TaskArgument{"[]byte", rv.Bytes()}
		}
		if k != kindNone {
			return TaskArgument{"[]" + scalarNames[k], basicElements(rv, argType{shapeSlice, k})}
		}
	case reflect.Map:
		if k := scalarOf(t.Elem().Kind()); k != kindNone && t.Key().Kind() == reflect.String {
			return TaskArgument{"map[string]" + scalarNames[k], basicElements(rv, argType{shapeMap, k})}
		}
	}
	if !carries(t, false, nil) {
		return TaskArgument{"", v}
	}
	return TaskArgument{"json", v}
}

// basicElements converts a slice or map to the one its declared type names; nil stays nil, and nothing is copied if only
// the type's name differs.
func basicElements(rv reflect.Value, typ argType) any {
	t := typ.goType()
	if rv.CanConvert(t) {
		return rv.Convert(t).Interface()
	}
	if rv.IsNil() {
		return reflect.Zero(t).Interface()
	}
	if typ.shape == shapeSlice {
		s := reflect.MakeSlice(t, rv.Len(), rv.Len())
		for i := range rv.Len() {
			s.Index(i).Set(rv.Index(i).Convert(t.Elem()))
		}
		return s.Interface()
	}
	m := reflect.MakeMapWithSize(t, rv.Len())
	for it := rv.MapRange(); it.Next(); {
		m.SetMapIndex(it.Key().Convert(t.Key()), it.Value().Convert(t.Elem()))
	}
	return m.Interface()
}

// exactly reports whether a value has the very type that is declared, so that its JSON need not be checked.
func exactly(v any, typ argType) bool {
	if typ.shape == shapeSlice && typ.elem == kindUint8 {
		return false // it is a []byte to Go and becomes base64, but an array is declared
	}
	return typ.shape == shapeJSON || v != nil && reflect.TypeOf(v) == typ.goType()
}

// leafOf looks through slices, maps and pointers. A type with its own encoding tells nothing.
func leafOf(v any) leaf {
	t := reflect.TypeOf(v)
	for range 4 {
		if t == nil || t.Implements(jsonMarshaler) || t.Implements(textMarshaler) {
			return leafOther
		}
		switch k := scalarOf(t.Kind()); {
		case k.integer():
			return leafInteger
		case k.float():
			return leafFloat
		}
		switch t.Kind() {
		case reflect.Slice, reflect.Array, reflect.Map, reflect.Pointer:
			if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
				return leafBytes
			}
			t = t.Elem()
		default:
			return leafOther
		}
	}
	return leafOther
}

// replacement is what json.Marshal writes in place of bytes that are not UTF-8. It writes a U+FFFD of the text itself
// unescaped, so the escape stands for such bytes, or comes from a type's own method, which is trusted.
var replacement = []byte(`\ufffd`)

// replacedText reports whether json.Marshal replaced text of v when it wrote raw. It follows raw and looks only where the replacement
// stands, so it ends where raw does, even if v refers to itself.
func replacedText(v any, raw []byte) bool { return replaced(reflect.ValueOf(v), raw) }

func replaced(v reflect.Value, raw []byte) bool {
	if !bytes.Contains(raw, replacement) {
		return false
	}
	for !ownEncoding(v) {
		switch v.Kind() {
		case reflect.Pointer, reflect.Interface:
			v = v.Elem()
			continue
		case reflect.String:
			return !utf8.ValidString(v.String())
		case reflect.Slice, reflect.Array:
			return replacedElement(v, raw)
		case reflect.Map:
			return replacedMember(v, raw)
		case reflect.Struct:
			return replacedField(v, raw)
		}
		return false
	}
	return false
}

// ownEncoding reports whether a type's own method writes v. v may be the zero Value, which is written as null.
func ownEncoding(v reflect.Value) bool {
	if !v.IsValid() {
		return true
	}
	t := v.Type()
	if v.CanAddr() && t.Kind() != reflect.Pointer {
		t = reflect.PointerTo(t) // has the methods of both
	}
	return t.Implements(jsonMarshaler) || t.Implements(textMarshaler)
}

func replacedElement(v reflect.Value, raw []byte) bool {
	i := 0
	for value := range elements(raw) {
		if i < v.Len() && replaced(v.Index(i), value) {
			return true
		}
		i++
	}
	return false
}

func replacedMember(v reflect.Value, raw []byte) bool {
	named := v.Type().Key().Kind() == reflect.String
	for key, value := range members(raw) {
		if named && bytes.Contains(key, replacement) {
			for it := v.MapRange(); it.Next(); {
				if !utf8.ValidString(it.Key().String()) {
					return true
				}
			}
		}
		if !bytes.Contains(value, replacement) {
			continue
		}
		if named {
			name, _ := unquote(key)
			if e := v.MapIndex(reflect.ValueOf(name).Convert(v.Type().Key())); e.IsValid() && replaced(e, value) {
				return true
			}
			continue
		}
		for it := v.MapRange(); it.Next(); { // all are written, so one match is enough
			if replaced(it.Value(), value) {
				return true
			}
		}
	}
	return false
}

func replacedField(v reflect.Value, raw []byte) bool {
	for key, value := range members(raw) {
		if !bytes.Contains(value, replacement) {
			continue
		}
		name, _ := unquote(key)
		for _, f := range reflect.VisibleFields(v.Type()) {
			if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.IsExported() && (tag == name || f.Name == name) {
				if field, err := v.FieldByIndexErr(f.Index); err == nil && replaced(field, value) {
					return true
				}
			}
		}
	}
	return false
}

// plainHeader reduces a header value of a named or typed kind by one level, to string, bool, int64, uint64, float64,
// []byte, []any or map[string]any; false = it is of none of these kinds.
func plainHeader(v any) (any, bool) {
	rv := reflect.ValueOf(v)
	switch k := scalarOf(rv.Kind()); {
	case k == kindBool:
		return rv.Bool(), true
	case k == kindString:
		return strings.Clone(rv.String()), true
	case k.signed():
		return rv.Int(), true
	case k.unsigned():
		return rv.Uint(), true
	case k.float():
		return rv.Float(), true
	}
	switch {
	case rv.Kind() == reflect.Slice && rv.Type().Elem().Kind() == reflect.Uint8:
		return rv.Bytes(), true
	case rv.Kind() == reflect.Slice:
		list := make([]any, rv.Len())
		for i := range list {
			list[i] = rv.Index(i).Interface()
		}
		return list, true
	case rv.Kind() == reflect.Map && rv.Type().Key().Kind() == reflect.String:
		table := make(map[string]any, rv.Len())
		for it := rv.MapRange(); it.Next(); {
			table[it.Key().String()] = it.Value().Interface()
		}
		return table, true
	}
	return nil, false
}
