package brokertest

import (
	"bytes"
	"reflect"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// richMessage returns a message with every property and every type of header that the contract allows.
func richMessage(queue, id string) broker.Message {
	at := time.Unix(1_700_000_000, 0).UTC()
	return broker.Message{
		RoutingKey:      queue,
		ID:              id,
		Type:            "a.task",
		ContentType:     "application/json",
		ContentEncoding: "identity",
		AppID:           "an.app",
		CorrelationID:   "correlation",
		ReplyTo:         "replies",
		Priority:        7,
		Timestamp:       at,
		Body:            []byte(`{"a": "ü"}`),
		Expiration:      "1", // ignored, like the two below
		UserID:          "nobody",
		Unreadable:      "not looked at",
		Headers: map[string]any{
			"string": "text", "empty": "", "bool": true, "int64": int64(-1 << 62), "float64": 0.1,
			"bytes": []byte{0, 0xff, '\n'}, "time": at, "nil": nil,
			"list": []any{"a", int64(1), nil, []any{false}, map[string]any{"k": 1.5}},
			"map": map[string]any{
				"k": "v", "list": []any{int64(2)}, "map": map[string]any{"at": at, "b": []byte("b")},
			},
		},
	}
}

// same checks that got has the content of want. Brokers may add headers of their own and choose another route.
func (k *kit) same(got, want broker.Message) {
	k.Helper()
	for _, p := range []struct{ name, got, want string }{
		{"ID", got.ID, want.ID},
		{"Type", got.Type, want.Type},
		{"ContentType", got.ContentType, want.ContentType},
		{"CorrelationID", got.CorrelationID, want.CorrelationID},
		{"ReplyTo", got.ReplyTo, want.ReplyTo},
		{"ContentEncoding", got.ContentEncoding, want.ContentEncoding},
		{"AppID", got.AppID, want.AppID},
		{"Expiration", got.Expiration, ""},
		{"UserID", got.UserID, ""},
	} {
		if p.got != p.want {
			k.Errorf("message %q: %s is %q, want %q", want.ID, p.name, p.got, p.want)
		}
	}
	if got.Priority != want.Priority {
		k.Errorf("message %q: Priority is %d, want %d", want.ID, got.Priority, want.Priority)
	}
	if !got.Timestamp.Equal(want.Timestamp) {
		k.Errorf("message %q: Timestamp is %v, want %v", want.ID, got.Timestamp, want.Timestamp)
	}
	if !bytes.Equal(got.Body, want.Body) {
		k.Errorf("message %q: the body of %d bytes is not the one of %d bytes that was sent",
			want.ID, len(got.Body), len(want.Body))
	}
	if got.Unreadable != "" {
		k.Errorf("message %q: Unreadable is %q", want.ID, got.Unreadable)
	}
	for name, v := range want.Headers {
		g, ok := got.Headers[name]
		if !ok || !sameValue(g, v) {
			k.Errorf("message %q: header %s is %#v (present: %v), want %#v", want.ID, name, g, ok, v)
		}
	}
}

// sameValue compares header values. Their types must be the same, and times must be in UTC.
func sameValue(a, b any) bool {
	switch b := b.(type) {
	case time.Time:
		a, ok := a.(time.Time)
		return ok && a.Equal(b) && a.Location() == time.UTC
	case []any:
		a, ok := a.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range b {
			if !sameValue(a[i], b[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		a, ok := a.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for key := range b {
			if v, ok := a[key]; !ok || !sameValue(v, b[key]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}
