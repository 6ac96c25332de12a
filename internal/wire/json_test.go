package wire

import "testing"

// Invalid text may give wrong parts, but no panic.
func TestPartsOfInvalidTextNeverPanic(t *testing.T) {
	t.Parallel()
	const valid = `{"a":[1,"x\\\"\ud83d\ude42",{"b":null}],"c" : { "d" : [ ] , "e":true } ,"uuid":"u"}`
	check := func(raw []byte) {
		for range members(raw) {
		}
		for range elements(raw) {
		}
		_, _ = splitObject(raw, "a", "c", "uuid")
		_, _ = unquote(raw)
		_ = badText(raw)
	}
	for i := range len(valid) + 1 {
		check([]byte(valid[:i]))
		check([]byte(valid[i:]))
		if i == len(valid) {
			continue
		}
		for _, c := range []byte(`{}[]":,\u `) {
			broken := []byte(valid)
			broken[i] = c
			check(broken)
		}
	}
}

func TestMembersAndElementsAreFoundWhole(t *testing.T) {
	t.Parallel()
	got := ""
	for key, value := range members([]byte(`{ "a" : [1,{"b":"]}"}] ,"\u0061\"":"x, y" , "":{}}`)) {
		got += string(key) + "=" + string(value) + ";"
	}
	if want := `"a"=[1,{"b":"]}"}];"\u0061\""="x, y";""={};`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	got = ""
	for value := range elements([]byte(`[ 1 ,"a\\",[2 , 3], {"c":[]},null]`)) {
		got += string(value) + ";"
	}
	if want := `1;"a\\";[2 , 3];{"c":[]};null;`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestBadTextIsFoundWhereItIs(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]int{
		`"a"`: -1, `"é🙂"`: -1, `"\u00e9"`: -1, `"\ud83d\ude42"`: -1, `"\uD83D\uDE42"`: -1, `"\\ud83d"`: -1, "\"\uFFFD\"": -1, `"\ufffd"`: -1,
		"\"\xff\"": 1, "\"é\xc3\"": 3, `"\ud83d"`: 1, `"a\ude42"`: 2, `"\ud83d\ud83d\ude42"`: 1, `"\ud83dx\ude42"`: 1, `"\ud83d\ude42\ud83d"`: 13, `"\\\ud83d"`: 3,
	} {
		if got := badText([]byte(raw)); got != want {
			t.Errorf("%q: %d, want %d", raw, got, want)
		}
	}
}
