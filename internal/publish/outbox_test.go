package publish

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// A field that an entry does not carry would be lost on the way through the outbox, in silence.
func TestAnEntryCarriesTheWholeMessage(t *testing.T) {
	t.Parallel()
	// Messages to publish leave these fields empty.
	unused := []string{"ContentEncoding", "AppID", "CorrelationID", "ReplyTo", "Priority", "Expiration", "UserID", "Unreadable"}
	m := broker.Message{
		Exchange: "x", RoutingKey: "k", ID: "id", Type: "t", ContentType: "application/json", Timestamp: time.Now(), NotBefore: time.Now().Add(time.Hour),
		Headers: map[string]any{"h": int64(1)}, Body: []byte("{}"),
	}
	for i := range reflect.TypeFor[broker.Message]().NumField() {
		name := reflect.TypeFor[broker.Message]().Field(i).Name
		if reflect.ValueOf(m).Field(i).IsZero() != slices.Contains(unused, name) {
			t.Errorf("teach this test, entryOf and Entry.message the field %s", name)
		}
	}
	e := entryOf(&m)
	if got := e.message("another", "another"); !reflect.DeepEqual(got, m) {
		t.Errorf("got  %+v\nwant %+v", got, m)
	}
}
