package contain

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// stackOf calls f and returns the stack of its panic.
func stackOf(f func()) (stack []string) {
	defer func() {
		if recover() != nil {
			for i, line := range strings.Split(string(Stack()), "\n") {
				if i%2 == 0 { // every second line has file and line number
					stack = append(stack, line)
				}
			}
		}
	}()
	f()
	return nil
}

// All functions of this package count as the library. So functions of the standard library stand for the user's.
func TestAStackHasNoFramesOfTheLibrary(t *testing.T) {
	t.Parallel()
	user := []string{"strings.Repeat", "testing.tRunner"}
	for name, f := range map[string]func(){
		"directly": func() { _ = strings.Repeat("x", -1) },
		"with reflect": func() {
			reflect.ValueOf(strings.Repeat).Call([]reflect.Value{reflect.ValueOf("x"), reflect.ValueOf(-1)})
		},
	} {
		got := stackOf(f)
		got = slices.DeleteFunc(got, func(frame string) bool {
			return strings.HasPrefix(frame, "strings.Repeat") && frame != "strings.Repeat"
		})
		if !slices.Equal(got, user) {
			t.Errorf("%s: got %q, want %q", name, got, user)
		}
	}
}

// A function of the library that panics has a bug. Its frames are needed then.
func TestAStackOfTheLibrarysOwnPanicIsWhole(t *testing.T) {
	t.Parallel()
	buggy := func(int) bool { panic("bug") }
	got := stackOf(func() { _ = slices.IndexFunc([]int{1}, buggy) })
	if len(got) < 4 || !own(got[0]) || !slices.ContainsFunc(got[1:], own) || !slices.Contains(got, "testing.tRunner") {
		t.Errorf("got %q", got)
	}
}

func TestOnlyTheRootAndItsRoomsAreTheLibrary(t *testing.T) {
	t.Parallel()
	const module = "github.com/seed-416683c9/dispatcher"
	for function, want := range map[string]bool{
		module + ".(*shift).slot":           true,
		module + "/internal/wire.Decode":    true,
		module + "/broker/memory.New":       false,
		module + "/examples/readme.main":    false,
		module + "-fork.New":                false,
		module + "er/internal/x.F":          false,
		"main.main":                         false,
		"example.com/dispatcher/internal.F": false,
	} {
		if got := own(function); got != want {
			t.Errorf("%s: %v", function, got)
		}
	}
}
