package bolt

import (
	"errors"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// A field that is not stored would be lost in silence. So would a header whose type is not stored.
func TestAnEntryIsStoredWhole(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	e := dispatcher.OutboxEntry{
		ID: "7", Exchange: "x", RoutingKey: "k", UUID: "u", Name: "n", ContentType: "c", Body: []byte("{}"),
		Headers:   map[string]any{"": nil, "t": at, "i": int64(math.MinInt64), "l": []any{map[string]any{"b": []byte{1}, "f": -0.5, "t": true, "s": "ü"}}},
		NotBefore: at, AcceptedAt: at.Add(1), Refused: "r", RefusedAt: at.Add(2),
	}
	for i := range reflect.TypeFor[dispatcher.OutboxEntry]().NumField() {
		if reflect.ValueOf(e).Field(i).IsZero() {
			t.Errorf("teach this test and entryFields the field %s", reflect.TypeFor[dispatcher.OutboxEntry]().Field(i).Name)
		}
	}
	payload, err := encodeEntry(&e)
	if err != nil {
		t.Fatal(err)
	}
	key := entryKey("k", 7)
	got, err := decodeEntry(key, seal(key, payload))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []*time.Time{&got.NotBefore, &got.AcceptedAt, &got.RefusedAt} { // another *time.Location, the same moment
		if _, offset := at.Zone(); offset != 3600 {
			t.Errorf("the zone's offset is %d", offset)
		}
		*at = at.In(e.NotBefore.Location())
	}
	got.Headers["t"] = got.Headers["t"].(time.Time).In(at.Location())
	if !reflect.DeepEqual(got, e) {
		t.Errorf("got  %+v\nwant %+v", got, e)
	}
}

func TestAHeaderOfAnotherTypeIsRefused(t *testing.T) {
	t.Parallel()
	for _, v := range []any{int(1), float32(1), []string{"x"}, struct{}{}, []any{map[string]any{"deep": uint8(1)}}} {
		if _, err := encodeEntry(&dispatcher.OutboxEntry{Headers: map[string]any{"h": v}}); !errors.Is(err, errType) {
			t.Errorf("%T: got %v", v, err)
		}
	}
}

// An older program must not send a task without a field that a newer program has put into it.
func TestAnUnknownFieldIsAnErrorAndNoDamage(t *testing.T) {
	t.Parallel()
	key := entryKey("k", 1)
	payload, err := appendValue(appendBytes(nil, "from the future"), int64(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeEntry(key, seal(key, payload)); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("field: got %v", err)
	}
	s := state{format: format + 1}
	if err := new(state).decode(s.encode()); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("format: got %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	payload, err := encodeEntry(&dispatcher.OutboxEntry{UUID: "u", Body: []byte("{}"), AcceptedAt: time.Unix(1, 2), Headers: map[string]any{
		"h": []any{int64(1), 2.5, "s", []byte("b"), nil, true, false, time.Unix(3, 4), map[string]any{}},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		key := entryKey("k", 1)
		e, err := decodeEntry(key, seal(key, payload))
		if err != nil {
			return
		}
		again, err := encodeEntry(&e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeEntry(key, seal(key, again)); err != nil {
			t.Error(err)
		}
	})
}
