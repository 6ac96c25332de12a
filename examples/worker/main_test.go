package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The test runs both programs as a user does. The sender is a process.
func TestWorkerRunsWhatTheSenderPublishes(t *testing.T) {
	url := os.Getenv("DISPATCHER_AMQP_CON")
	if url == "" {
		t.Skip("DISPATCHER_AMQP_CON is not set")
	}
	sender := exec.Command("go", "run", "../sender", "3")
	if out, err := sender.CombinedOutput(); err != nil || !strings.Contains(string(out), "3 tasks confirmed, 0 not") {
		t.Fatalf("sender: %v\n%s", err, out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	code := make(chan int)
	go func() { code <- run(ctx, url, in, io.Discard) }()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "hello reader, for the 3. time") {
			break
		}
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, out) }() // read the output of tasks that a former run has left
	if c := <-code; c != 0 {
		t.Errorf("exit code %d", c)
	}
	_ = in.Close()
}

func TestItSaysWhichVariableToSet(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	if code := run(t.Context(), "", io.Discard, &stderr); code != 2 || !strings.Contains(stderr.String(), "DISPATCHER_AMQP_CON") {
		t.Errorf("exit code %d, %q", code, stderr.String())
	}
}
