package dispatchertest

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// RequirePublished returns the published task of that name, and fails the test at once unless there is exactly one. If
// args are given, only tasks with these arguments count: each argument is decoded into the Go type of args[i], as a
// worker would do for a parameter of that type, and must then equal args[i] after the same conversion. Times are equal
// if they are the same instant. The failure message lists what was published instead.
//
// It looks at all of [Kit.Published] and does not wait: call it when the code under test has returned, or after
// [Kit.RunUntilIdle].
func (k *Kit) RequirePublished(tb testing.TB, name string, args ...any) *dispatcher.Task {
	tb.Helper()
	wanted := fmt.Sprintf("task %q", name)
	var want *dispatcher.Task
	if len(args) > 0 {
		want = dispatcher.NewTask(name, args...)
		if err := want.DecodeArgs(variables(args)...); err != nil {
			tb.Fatalf("dispatchertest: no task can have the wanted arguments: %v", err)
			return nil
		}
		wanted += " with the arguments (" + arguments(want) + ")"
	}
	all := k.Published()
	var found []*dispatcher.Task
	for _, task := range all {
		if task.Name == name && (want == nil || sameArguments(task, want, args)) {
			found = append(found, task)
		}
	}
	switch len(found) {
	case 1:
		return found[0]
	case 0:
		tb.Fatalf("%s was not published.\n%s", wanted, describe(all))
	default:
		tb.Fatalf("%s was published %d times, want once.\n%s", wanted, len(found), describe(all))
	}
	return nil
}

// RequireNotPublished fails the test at once if a task with one of these names was published, or, without names, if any
// task was. The failure message lists what was published.
func (k *Kit) RequireNotPublished(tb testing.TB, names ...string) {
	tb.Helper()
	found := k.Published(names...)
	if len(found) == 0 {
		return
	}
	wanted := "nothing"
	if len(names) > 0 {
		wanted = fmt.Sprintf("no task of %q", names)
	}
	tb.Fatalf("want %s to be published, got %d.\n%s", wanted, len(found), describe(found))
}

// sameArguments reports whether task has the arguments args, from which want was made.
func sameArguments(task, want *dispatcher.Task, args []any) bool {
	got, wanted := variables(args), variables(args)
	if task.DecodeArgs(got...) != nil || want.DecodeArgs(wanted...) != nil {
		return false
	}
	for i := range args {
		g, w := reflect.ValueOf(got[i]).Elem().Interface(), reflect.ValueOf(wanted[i]).Elem().Interface()
		if at, ok := w.(time.Time); ok {
			if !at.Equal(g.(time.Time)) {
				return false
			}
		} else if !reflect.DeepEqual(g, w) {
			return false
		}
	}
	return true
}

// variables makes a variable of the type of each value and returns their addresses.
func variables(values []any) []any {
	pointers := make([]any, len(values))
	for i, v := range values {
		if v == nil {
			pointers[i] = new(any)
			continue
		}
		pointers[i] = reflect.New(reflect.TypeOf(v)).Interface()
	}
	return pointers
}

// Bounds of a failure message.
const (
	maxShown     = 50  // tasks
	maxShownText = 300 // bytes of the arguments, or the headers, of one
)

// describe lists tasks for a failure message.
func describe(tasks []*dispatcher.Task) string {
	if len(tasks) == 0 {
		return "Nothing was published."
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Published, in this order:")
	for i, task := range tasks {
		if i == maxShown {
			fmt.Fprintf(&b, "\n\tand %d more", len(tasks)-maxShown)
			break
		}
		fmt.Fprintf(&b, "\n\t%s(%s) key %q", task.Name, arguments(task), task.RoutingKey)
		if task.Delay > 0 {
			fmt.Fprintf(&b, " delay %v", task.Delay)
		}
		if len(task.Headers) > 0 {
			var headers []string
			for _, name := range slices.Sorted(maps.Keys(task.Headers)) {
				headers = append(headers, fmt.Sprintf("%s=%v", name, task.Headers[name]))
			}
			fmt.Fprintf(&b, " headers [%s]", cut(strings.Join(headers, " ")))
		}
	}
	return b.String()
}

// arguments returns the arguments of a task as JSON. They are decoded first, so that those of a wanted and of a
// published task look the same.
func arguments(task *dispatcher.Task) string {
	values := variables(make([]any, len(task.Args)))
	if err := task.DecodeArgs(values...); err != nil {
		return err.Error()
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for i, v := range values {
		if i > 0 {
			b.WriteString(", ")
		}
		if err := enc.Encode(v); err != nil {
			b.WriteString(err.Error())
		}
	}
	return cut(strings.ReplaceAll(b.String(), "\n", "")) // Encode ends each value with a newline, and has none inside
}

func cut(text string) string {
	if len(text) <= maxShownText {
		return text
	}
	return strings.ToValidUTF8(text[:maxShownText], "") + "…"
}
