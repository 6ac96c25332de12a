package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestEverySquareIsPrinted(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = write
	main()
	os.Stdout = stdout
	if err := write.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for n := range 10 {
		if want := fmt.Sprint(n, " squared is ", n*n); !slices.Contains(lines, want) || len(lines) != 10 {
			t.Errorf("%q is not in %q", want, lines)
		}
	}
}
