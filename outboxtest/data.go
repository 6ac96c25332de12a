package outboxtest

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// fullEntry returns an entry with a value in every field but ID and the fields of dead entries.
func fullEntry() dispatcher.OutboxEntry {
	zone := time.FixedZone("far", 5*3600+45*60)
	nested := map[string]any{
		"list": []any{int64(1), 1.0, "1", []byte("1"), nil, true, map[string]any{"deep": []any{}}},
		"at":   time.Date(1900, 1, 1, 12, 0, 0, 999_999_999, zone),
	}
	return dispatcher.OutboxEntry{
		Exchange:    "exchange",
		RoutingKey:  "full",
		UUID:        "uuid",
		Name:        "näme",
		ContentType: "application/json",
		Body:        []byte("{\"a\":\"\xff\x00\"}"),
		NotBefore:   time.Date(2030, 12, 31, 23, 59, 59, 123_456_789, zone),
		AcceptedAt:  time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Headers: map[string]any{
			"string": "text", "empty": "", "odd": "\x00\xff\n", "true": true, "false": false,
			"int": int64(math.MinInt64), "big": int64(math.MaxInt64), "exact": int64(1<<53 + 1),
			"float": 1.0, "small": math.SmallestNonzeroFloat64, "negative zero": math.Copysign(0, -1),
			"bytes": []byte{0, 255}, "no bytes": []byte{}, "time": time.Date(2026, 5, 6, 7, 8, 9, 10, time.UTC),
			"nil": nil, "list": []any{nested, nil}, "no list": []any{}, "map": nested, "no map": map[string]any{},
			"": "empty name",
		},
	}
}

func testData(a *area) {
	a.test("every field and header type comes back", func(k *kit) {
		e := fullEntry()
		v := reflect.ValueOf(e)
		for i := range v.NumField() {
			switch name := v.Type().Field(i).Name; name {
			case "ID", "Refused", "RefusedAt":
			default:
				if v.Field(i).IsZero() {
					k.Errorf("this suite does not cover the field %s: add it", name)
				}
			}
		}
		k.check(k.o.Add(k.ctx, e))
		got := k.oldest(e.RoutingKey)
		k.same(got, e)
		if got.ID == "" {
			k.Error("it has no ID")
		}
		if z, ok := got.Headers["negative zero"].(float64); ok && !math.Signbit(z) {
			k.Error("the sign of zero is lost")
		}
	})
	a.test("what is empty stays empty", func(k *kit) {
		k.check(k.o.Add(k.ctx, dispatcher.OutboxEntry{}))
		got := k.oldest("")
		got.ID = ""
		if len(got.Body) != 0 || len(got.Headers) != 0 {
			k.Errorf("got %+v", got)
		}
		got.Body, got.Headers = nil, nil
		k.same(got, dispatcher.OutboxEntry{})
	})
	a.test("a large body", func(k *kit) {
		e := entry("k", "1")
		e.Body = bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		k.check(k.o.Add(k.ctx, e))
		k.same(k.oldest("k"), e)
	})
	a.test("a large header", func(k *kit) {
		e := entry("k", "1")
		e.Headers = map[string]any{"h": strings.Repeat("x", 60_000)}
		k.check(k.o.Add(k.ctx, e))
		k.same(k.oldest("k"), e)
	})
	a.test("the ID of the caller is not used", func(k *kit) {
		for _, uuid := range []string{"1", "2"} {
			e := entry("k", uuid)
			e.ID = "mine"
			k.check(k.o.Add(k.ctx, e))
		}
		first := k.oldest("k")
		k.remove(first)
		if second := k.oldest("k"); second.ID == first.ID {
			k.Errorf("two entries with ID %q", second.ID)
		}
	})
}
