package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary is also the program, because signals need a process.
const asProgram = "DISPATCHER_TEST_GRACEFUL"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

func TestSignalDrains(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			p := launch(t, "-drain", "700ms")
			p.await("ready: process", "task 1 (long) begun", "task 2 (long) begun", "(short) finished")
			p.signal(signal)
			p.await("stopping: running tasks have 700ms")
			output := p.end()
			for n := 1; n <= 2; n++ {
				var after string
				_, line, _ := strings.Cut(output, fmt.Sprintf("task %d (long) given back after ", n))
				fmt.Sscanf(line, "%s worker is shutting down", &after)
				took, err := time.ParseDuration(strings.TrimSuffix(after, ":"))
				if err != nil || took < 700*time.Millisecond {
					t.Errorf("task %d ended after %v: %v", n, took, err)
				}
			}
			s := p.summary()
			if s.finished != strings.Count(output, "(short) finished") || s.givenBack != 2 || s.left != 0 || p.code() != 0 {
				t.Errorf("%+v, %v", s, p.cmd.ProcessState)
			}
		})
	}
}

func TestEndsByItself(t *testing.T) {
	t.Parallel()
	p := launch(t, "-for", "1s", "-drain", "10ms")
	p.end()
	if s := p.summary(); s.left != 0 || s.published < 2 || p.code() != 0 {
		t.Errorf("%+v, %v", s, p.cmd.ProcessState)
	}
}

func TestTaskLeftRunningIsAnError(t *testing.T) {
	t.Parallel()
	p := launch(t, "-stubborn", "-drain", "10ms")
	p.await("task 1 (long) begun", "task 2 (long) begun", "task 3 (stubborn) begun")
	p.signal(syscall.SIGTERM)
	p.end()
	if s := p.summary(); s.left != 1 || s.givenBack != 2 || p.code() != 1 || !strings.Contains(p.stderr.String(), "tasks are still running: 1") {
		t.Errorf("%+v, %v, %s", s, p.cmd.ProcessState, p.stderr.String())
	}
}

func TestSecondSignalKills(t *testing.T) {
	t.Parallel()
	p := launch(t, "-drain", "1h")
	p.await("task 1 (long) begun")
	p.signal(syscall.SIGTERM)
	p.await("stopping: ")
	p.signal(syscall.SIGTERM)
	p.end()
	if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGTERM {
		t.Errorf("%v", p.cmd.ProcessState)
	}
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	for argument, want := range map[string]int{"-h": 0, "-x": 2, "argument": 2, "-for=long": 2} {
		var stdout, stderr bytes.Buffer
		if code := run([]string{argument}, &stdout, &stderr); code != want || stdout.Len() > 0 || !strings.Contains(stderr.String(), "Usage of graceful") {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", argument, code, stdout.String(), stderr.String())
		}
	}
}

// process is the program under test.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	output strings.Builder // all lines read so far
	stderr bytes.Buffer
}

func launch(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.CommandContext(t.Context(), self, args...)}
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	p.cmd.Stderr = &p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(stdout)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// await reads until the output contains all texts, in any order.
func (p *process) await(texts ...string) {
	p.t.Helper()
	for _, text := range texts {
		for !strings.Contains(p.output.String(), text) {
			if !p.lines.Scan() {
				p.t.Fatalf("the output ends without %q:\n%s%s", text, p.output.String(), p.stderr.String())
			}
			p.output.WriteString(p.lines.Text() + "\n")
		}
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// end waits for the end of the process and returns all output.
func (p *process) end() string {
	for p.lines.Scan() {
		p.output.WriteString(p.lines.Text() + "\n")
	}
	_ = p.cmd.Wait()
	return p.output.String()
}

func (p *process) code() int { return p.cmd.ProcessState.ExitCode() }

type summary struct{ published, finished, givenBack, left, notBegun int }

// summary parses the last line, which must account for every task.
func (p *process) summary() (s summary) {
	p.t.Helper()
	output := strings.TrimSuffix(p.output.String(), "\n")
	last := output[strings.LastIndexByte(output, '\n')+1:]
	_, err := fmt.Sscanf(last, "%d tasks: %d finished, %d given back, %d left running, %d not begun",
		&s.published, &s.finished, &s.givenBack, &s.left, &s.notBegun)
	if err != nil || s.published != s.finished+s.givenBack+s.left+s.notBegun || s.notBegun < 0 {
		p.t.Errorf("summary %q: %v", last, err)
	}
	return s
}
