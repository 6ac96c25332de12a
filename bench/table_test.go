package main

import "testing"

func TestTable(t *testing.T) {
	t.Parallel()
	unknown := sample{p50: none, p99: none, client: none, broker: none, allocs: none, peak: none}
	at := func(rate float64) sample { s := unknown; s.rate = rate; return s }
	slow := unknown
	slow.rate, slow.p50, slow.p99 = none, 0.25, 1.5
	works := []*work{{name: "publish", rows: []*row{
		{program: "by hand", guarantees: "a", server: rabbitMQ, samples: []sample{at(1000), at(2000), at(3000)}},
		{program: "ours", guarantees: "b", server: rabbitMQ, samples: []sample{at(1100), at(1000), at(3000)}},
		{program: "theirs", guarantees: "a", server: rabbitMQ, missing: "there is no Redis"},
		{program: "one by one", guarantees: "b", server: rabbitMQ, samples: []sample{slow}},
	}}}
	want := `
| work    | program    | tasks/s, or latency    | ratio to by hand     | client CPU | broker CPU | allocs | peak MiB | see |
| ------- | ---------- | ---------------------- | -------------------- | ---------- | ---------- | ------ | -------- | --- |
| publish | by hand    | 2,000                  | 1                    | –          | –          | –      | –        | 1   |
|         | ours       | 1,100                  | **1.00** [0.50–1.10] | –          | –          | –      | –        | 2   |
|         | theirs     | – (there is no Redis)  | –                    | –          | –          | –      | –        | 1   |
|         | one by one | p50 250 µs, p99 1.5 ms | **4.00** [4.00–4.00] | –          | –          | –      | –        | 2   |
`
	if got := "\n" + table(works); got != want {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
	if got, want := guarantees(works), "1. a\n2. b\n"; got != want {
		t.Errorf("guarantees: %q, want %q", got, want)
	}
}

func TestThousands(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 123456: "123,456", 1234567.8: "1,234,568", none: "–"} {
		if got := thousands(v); got != want {
			t.Errorf("thousands(%v) = %q, want %q", v, got, want)
		}
	}
}

func TestReplacePartsReplacesOnlyItsParts(t *testing.T) {
	t.Parallel()
	page := "before\n<!-- bench: table -->\nold\n<!-- bench: end -->\nbetween\n<!-- bench: idle -->\nkept\n<!-- bench: end -->\nafter\n"
	want := "before\n<!-- bench: table -->\n\nnew\n\n<!-- bench: end -->\nbetween\n<!-- bench: idle -->\nkept\n<!-- bench: end -->\nafter\n"
	got, err := replaceParts(page, map[string]string{"table": "new\n"})
	if err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := replaceParts(page, map[string]string{"other": ""}); err == nil {
		t.Error("no error for a part that the page does not have")
	}
}
