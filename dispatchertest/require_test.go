package dispatchertest_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
	"github.com/seed-416683c9/dispatcher/dispatchertest"
)

type order struct {
	ID    int64
	Notes []string
}

func TestRequirePublishedFindsWhatWasPublished(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 28, 12, 0, 0, 5, time.FixedZone("CET", 3600))
	now := time.Now()
	for name, c := range map[string]struct{ published, want []any }{
		"none":              {nil, nil},
		"any":               {[]any{1, "x"}, nil},
		"the same":          {[]any{"ann", 2, true, 1.5}, []any{"ann", 2, true, 1.5}},
		"other integers":    {[]any{2, int64(math.MaxInt64)}, []any{int8(2), uint64(math.MaxInt64)}},
		"duration":          {[]any{time.Hour}, []any{time.Hour}},
		"int64 of duration": {[]any{time.Hour}, []any{int64(time.Hour)}},
		"bytes":             {[]any{[]byte{0, 255}}, []any{[]byte{0, 255}}},
		"slices and maps":   {[]any{[]string{"a"}, map[string]int{"b": 1}}, []any{[]string{"a"}, map[string]int{"b": 1}}},
		"struct":            {[]any{order{1<<53 + 1, []string{"<&>"}}}, []any{order{1<<53 + 1, []string{"<&>"}}}},
		"pointer":           {[]any{&order{ID: 1}}, []any{order{ID: 1}}},
		"the same instant":  {[]any{at}, []any{at.UTC()}},
		"monotonic clock":   {[]any{now}, []any{now}},
		"nil":               {[]any{nil, 1}, []any{nil, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kit := dispatchertest.New()
			task := dispatcher.NewTask("n", c.published...)
			publish(t, kit.NewServer(t, nil), task, dispatcher.NewTask("other"))
			if got := kit.RequirePublished(t, "n", c.want...); got.UUID != task.UUID {
				t.Errorf("got %+v", got)
			}
			kit.RequireNotPublished(t, "nothing", "like", "it")
		})
	}
}

func TestRequirePublishedShowsWhatWasPublishedInstead(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	server := kit.NewServer(t, nil)
	wantFailure(t, "task \"send\" was not published.\nNothing was published.", func(tb testing.TB) { kit.RequirePublished(tb, "send") })
	kit.RequireNotPublished(t)

	delayed := dispatcher.NewTask("bill", order{7, []string{"<b>"}})
	delayed.Delay, delayed.Headers = 90*time.Minute, map[string]any{"tenant": "blue", "n": 1}
	publish(t, server, dispatcher.NewTask("send", "ann", 2), dispatcher.NewTask("send", "bob", 2), delayed)
	all := `Published, in this order:
	send("ann", 2) key "test"
	send("bob", 2) key "test"
	bill({"ID":7,"Notes":["<b>"]}) key "test" delay 1h30m0s headers [n=1 tenant=blue]`

	for want, args := range map[string][]any{
		`task "send" was published 2 times, want once.`:                                nil,
		`task "send" with the arguments ("eve", 2) was not published.`:                 {"eve", 2},
		`task "send" with the arguments ("ann") was not published.`:                    {"ann"},
		`task "send" with the arguments ("ann", 2, 3) was not published.`:              {"ann", 2, 3},
		`task "send" with the arguments ("ann", "2") was not published.`:               {"ann", "2"},
		`task "send" with the arguments ({"ID":1,"Notes":null}, 2) was not published.`: {order{ID: 1}, 2},
		`task "send" with the arguments ("ann", null) was not published.`:              {"ann", nil},
	} {
		wantFailure(t, want+"\n"+all, func(tb testing.TB) {
			if got := kit.RequirePublished(tb, "send", args...); got != nil {
				t.Errorf("got %+v", got)
			}
		})
	}
	wantFailure(t, "task \"mend\" was not published.\n"+all, func(tb testing.TB) { kit.RequirePublished(tb, "mend") })
	wantFailure(t, `dispatchertest: no task can have the wanted arguments: argument 1: want a known type, got type "" of a Go value of type func()`,
		func(tb testing.TB) { kit.RequirePublished(tb, "send", "ann", func() {}) })
	publish(t, server, dispatcher.NewTask("send", "ann", 2))
	wantFailure(t, "task \"send\" with the arguments (\"ann\", 2) was published 2 times, want once.\n"+all+"\n\tsend(\"ann\", 2) key \"test\"",
		func(tb testing.TB) { kit.RequirePublished(tb, "send", "ann", 2) })
}

func TestRequireNotPublishedShowsWhatWasPublished(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	publish(t, kit.NewServer(t, nil), dispatcher.NewTask("send", "ann"), dispatcher.NewTask("bill"))
	wantFailure(t, "want no task of [\"send\" \"mend\"] to be published, got 1.\nPublished, in this order:\n\tsend(\"ann\") key \"test\"",
		func(tb testing.TB) { kit.RequireNotPublished(tb, "send", "mend") })
	wantFailure(t, "want nothing to be published, got 2.\nPublished, in this order:\n\tsend(\"ann\") key \"test\"\n\tbill() key \"test\"",
		func(tb testing.TB) { kit.RequireNotPublished(tb) })
}

func TestAFailureIsBounded(t *testing.T) {
	t.Parallel()
	kit := dispatchertest.New()
	server := kit.NewServer(t, nil)
	for i := range 60 {
		task := dispatcher.NewTask("n", i, strings.Repeat("é", 1_000))
		task.Headers = map[string]any{"h": strings.Repeat("x", 1_000)}
		publish(t, server, task)
	}
	fake := &fakeTB{TB: t}
	kit.RequirePublished(fake, "m")
	lines := strings.Split(fake.failure, "\n")
	if len(lines) != 53 || lines[52] != "\tand 10 more" || len(fake.failure) > 50*700 {
		t.Errorf("%d lines, %d bytes, the last is %q", len(lines), len(fake.failure), lines[len(lines)-1])
	}
	if !strings.HasPrefix(lines[2], fmt.Sprintf("\tn(0, %q", strings.Repeat("é", 100))[:100]) || !strings.Contains(lines[2], "é…) key") {
		t.Errorf("line 2 is %q", lines[2])
	}
}
