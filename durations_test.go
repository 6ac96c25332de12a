package dispatcher

import (
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// This test sets every duration of a configuration, and any that is added later, to the longest possible. Sums with it
// must not overflow.
func TestDurationsAreClampedWhereTheyComeIn(t *testing.T) {
	t.Parallel()
	longest := func(config any) {
		v := reflect.ValueOf(config).Elem()
		for i := range v.NumField() {
			if v.Field(i).Type() == reflect.TypeFor[time.Duration]() {
				v.Field(i).SetInt(math.MaxInt64)
			}
		}
	}
	check := func(config any) {
		v := reflect.ValueOf(config).Elem()
		for i := range v.NumField() {
			if d, ok := v.Field(i).Interface().(time.Duration); ok && (d > maxDuration || d <= 0) {
				t.Errorf("%s.%s is %v", v.Type(), v.Type().Field(i).Name, d)
			}
		}
	}
	server, worker, policy := &ServerConfig{Broker: struct{ broker.Broker }{}}, &WorkerConfig{}, &RetryPolicy{}
	longest(server)
	longest(worker)
	policy.MaxAge = math.MaxInt64 // its other durations are errors if they are that long
	s, w := server.withDefaults(), worker.withDefaults()
	check(&s)
	check(&w)
	check(policy.withDefaults())
	for _, c := range []TaskConfig{{Timeout: math.MaxInt64}, {TimeoutSeconds: maxSeconds}} {
		if d, err := c.timeout(); err != nil || d > maxDuration || d <= 0 {
			t.Errorf("timeout %v, %v", d, err)
		}
	}
	if got, _ := (Page{Skip: math.MaxInt}).withDefaults(); got.Skip+got.Limit < 0 {
		t.Errorf("page %+v", got)
	}
}

// A duration that is too short or too long is an error, or is clamped.
func TestImpossibleDurationsAreErrorsOrClamped(t *testing.T) {
	t.Parallel()
	const least = math.MinInt64
	now := time.Now()
	for name, err := range map[string]error{
		"PublishTimeout":  (&ServerConfig{Exchange: "x", DefaultRoutingKey: "x", Broker: struct{ broker.Broker }{}, PublishTimeout: least}).validate(),
		"InitialInterval": (&RetryPolicy{InitialInterval: least}).validate("x"),
		"MaxInterval":     (&RetryPolicy{MaxInterval: least}).validate("x"),
		"MaxAge":          (&RetryPolicy{MaxAge: least}).validate("x"),
		"too long":        (&RetryPolicy{InitialInterval: math.MaxInt64, MaxInterval: math.MaxInt64}).validate("x"),
		"Timeout":         func() error { _, err := (&TaskConfig{Timeout: least}).timeout(); return err }(),
		"TimeoutSeconds":  func() error { _, err := (&TaskConfig{TimeoutSeconds: least}).timeout(); return err }(),
		"seconds":         func() error { _, err := (&TaskConfig{TimeoutSeconds: math.MaxInt64}).timeout(); return err }(),
		"Delay":           func() error { _, err := (&Task{Delay: least}).due(now); return err }(),
		"long Delay":      func() error { _, err := (&Task{Delay: math.MaxInt64}).due(now); return err }(),
		"NotBefore":       func() error { _, err := (&Task{NotBefore: time.Unix(1<<60, 0)}).due(now); return err }(),
		"ExpiresAt":       func() error { _, err := (&Task{ExpiresAt: time.Unix(-1<<60, 0)}).due(now); return err }(),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for d, want := range map[time.Duration]time.Duration{least: 0, math.MaxInt64: broker.MaxDelay} {
		if got := verdict.WishOf(RetryAfter(d, nil)); got.After != want {
			t.Errorf("RetryAfter(%v): %v", d, got.After)
		}
	}
}
