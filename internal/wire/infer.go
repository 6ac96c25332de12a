package wire

import (
	"reflect"
	"strings"
)

// The sender's side: from Go values to declared types and plain headers (docs/adr/0005-reflect-in-few-files.md).

// Infer declares the type of a value of any type; see Args.
func Infer(v any) Argument {
	rv := reflect.ValueOf(v)
	t := rv.Type()
	if k := scalarOf(t.Kind()); k != kindNone {
		return Argument{scalarNames[k], rv.Convert(scalarTypes[k]).Interface()}
	}
	switch t.Kind() {
	case reflect.Slice:
		k := scalarOf(t.Elem().Kind())
		if k == kindUint8 {
			return Argument{"[]byte", rv.Bytes()}
		}
		if k != kindNone {
			return Argument{"[]" + scalarNames[k], basicElements(rv, argType{shapeSlice, k})}
		}
	case reflect.Map:
		if k := scalarOf(t.Elem().Kind()); k != kindNone && t.Key().Kind() == reflect.String {
			return Argument{"map[string]" + scalarNames[k], basicElements(rv, argType{shapeMap, k})}
		}
	}
	if !Carries(t, false, nil) {
		return Argument{"", v}
	}
	return Argument{"json", v}
}

// basicElements converts a slice or map to the type that its declared type names. nil stays nil. If only the name of
// the type differs, nothing is copied.
func basicElements(rv reflect.Value, typ argType) any {
	t := typ.goType()
	if rv.CanConvert(t) {
		return rv.Convert(t).Interface()
	}
	if rv.IsNil() {
		return reflect.Zero(t).Interface()
	}
	if typ.Shape == shapeSlice {
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

// exactly reports whether a value has exactly the declared type, so that its JSON need not be checked.
func exactly(v any, typ argType) bool {
	if typ.Shape == shapeSlice && typ.elem == kindUint8 {
		return false // Go encodes it as base64, but an array is declared
	}
	return typ.Shape == shapeJSON || v != nil && reflect.TypeOf(v) == typ.goType()
}

// leafOf returns the leaf of v. It looks through slices, maps and pointers. A type with its own encoding is leafOther.
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

// plainHeader reduces a header value of a named or typed kind by one level, to string, bool, int64, uint64, float64,
// []byte, []any or map[string]any. It returns false for other kinds.
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
