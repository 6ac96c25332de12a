package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/seed-416683c9/dispatcher/broker"
)

// The test binary is also the program, for the tests that need a process.
const asProgram = "DISPATCHER_TEST_QUICKSTART"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

func TestItRunsOnRabbitMQ(t *testing.T) {
	t.Parallel()
	url := os.Getenv("DISPATCHER_AMQP_CON")
	if url == "" {
		t.Skip("DISPATCHER_AMQP_CON is not set")
	}
	folder := t.TempDir()
	for i := range 2*batchSize + 1 {
		write(t, folder, fmt.Sprintf("file %d", i), fmt.Sprint(i))
	}
	var manifest, stderr bytes.Buffer
	if code := run(t.Context(), []string{folder}, url, &manifest, &stderr); code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr.String())
	}
	if n := bytes.Count(manifest.Bytes(), []byte("\n")); n != 2*batchSize+1 {
		t.Errorf("%d lines", n)
	}
	sum := exec.Command("sha256sum", "--check", "--strict", "--quiet")
	sum.Dir, sum.Stdin = folder, &manifest
	if out, err := sum.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v\n%s", err, out)
	}
}

func TestItsQueuesAreGoneAtTheEnd(t *testing.T) {
	t.Parallel()
	url := os.Getenv("DISPATCHER_AMQP_CON")
	if url == "" {
		t.Skip("DISPATCHER_AMQP_CON is not set")
	}
	r, err := newRoute(url)
	check(t, err)
	var stdout, stderr bytes.Buffer
	if code := sumAll(t.Context(), nil, r, only(), &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr.String())
	}
	session, err := r.broker.Open(t.Context())
	check(t, err)
	defer session.Close(t.Context())
	for _, suffix := range []string{"", broker.DeadSuffix, broker.SuspectsSuffix} {
		if _, err := session.Inspect(t.Context(), r.queue+suffix); !errors.Is(err, broker.ErrQueueGone) {
			t.Errorf("%s: %v", r.queue+suffix, err)
		}
	}
}

func TestABadURLIsAUsageErrorWithoutItsPassword(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{t.TempDir()}, "http://me:hunter2@localhost/", &stdout, &stderr); code != 2 || strings.Contains(stderr.String(), "hunter2") {
		t.Errorf("exit code %d, %s", code, stderr.String())
	}
}

func TestManifestIsThatOfSha256sum(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	paths := []string{
		"plain", "with space", " leading space", "trailing space ", "-dash", "--check", "-", "line\nfeed", `back\slash`, `\`, `\n`,
		"carriage\rreturn", "return at the end\r", "tab\t", "*star", "#hash", "not UTF-8 \xff\xfe", "\xff", "\xff\n", "é", "U+FFFD \ufffd", "\x1b[31m",
		"module/after .git", "a/b", "a.b", "a b", "a/-", "dir\n/\xff\\/file", "git/.gitignore", ".gitignore",
	}
	for i := range 2*batchSize + 1 {
		paths = append(paths, fmt.Sprintf("many/%d", i))
	}
	for _, path := range paths {
		write(t, folder, path, "content of "+path)
	}
	write(t, folder, "empty", "")
	write(t, folder, "large", strings.Repeat("0123456789abcdef", 1<<17))
	paths = append(paths, "empty", "large")

	write(t, folder, ".git/config", "not listed")
	write(t, folder, "module/.git", "not listed")
	for link, target := range map[string]string{"link": "plain", "link to a folder": "many", "dangling": "nothing", "loop": "."} {
		check(t, os.Symlink(target, filepath.Join(folder, link)))
	}
	check(t, syscall.Mkfifo(filepath.Join(folder, "fifo"), 0o600))

	slices.Sort(paths)
	args := []string{"--"}
	for _, path := range paths {
		if path == "-" {
			path = "./-"
		}
		args = append(args, path)
	}
	want := sha256sum(t, folder, nil, args...)

	code, stdout, stderr := runIn(t.Context(), folder)
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	if stdout != want {
		t.Errorf("got manifest\n%s\nwant\n%s", stdout, want)
	}
	if !strings.HasPrefix(stderr, fmt.Sprintf("%d tasks, 0 failures, ", len(paths))) {
		t.Errorf("summary %q", stderr)
	}
	sha256sum(t, folder, strings.NewReader(stdout), "--check", "--strict", "--quiet")
}

func TestFolders(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	write(t, parent, ".git/file", "")
	write(t, parent, "-folder/file", "")
	write(t, parent, "line\nfeed \xff/file", "")
	check(t, os.Symlink("-folder", filepath.Join(parent, "link")))
	for _, folder := range []string{".git", "-folder", "line\nfeed \xff", "link", "-folder/", "-folder/../link/."} {
		code, stdout, stderr := runIn(t.Context(), parent+"/"+folder)
		if want := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  file\n"; code != 0 || stdout != want {
			t.Errorf("folder %q: exit code %d, manifest %q, %s", folder, code, stdout, stderr)
		}
	}
}

func TestEmptyFolder(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := runIn(t.Context(), t.TempDir())
	if code != 0 || stdout != "" || !strings.HasPrefix(stderr, "0 tasks, 0 failures, ") {
		t.Errorf("exit code %d, manifest %q, %s", code, stdout, stderr)
	}
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write(t, folder, "file", "")
	for name, test := range map[string]struct {
		args []string
		code int
		text string
	}{
		"two arguments":  {[]string{folder, folder}, 2, "usage: checksums [folder]"},
		"unknown flag":   {[]string{"-x"}, 2, "usage: checksums [folder]"},
		"help":           {[]string{"-h"}, 0, "usage: checksums [folder]"},
		"missing folder": {[]string{folder + "/none"}, 2, "no such file"},
		"a file":         {[]string{folder + "/file"}, 2, "not a directory"},
		"no name":        {[]string{""}, 2, "folder \"\""},
	} {
		code, stdout, stderr := runIn(t.Context(), test.args...)
		if code != test.code || stdout != "" || !strings.Contains(stderr, test.text) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", name, code, stdout, stderr)
		}
	}
}

func TestFailuresAreNamedAndTheRestIsListed(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	for _, name := range []string{"good", "good too", "gone\n", "grown", "shrunk", "fifo"} {
		write(t, folder, name, "12345")
	}
	long := strings.Repeat("x", 2<<20) // a task that is larger than MaxBodyBytes
	// Each file is found, and then changed as its name says before its task is published.
	files := func(yield func(file, error) bool) {
		for f := range walk(t.Context(), folder, nil) {
			switch f.path {
			case "gone\n":
				check(t, os.Remove(at(f.path)))
			case "grown":
				write(t, folder, f.path, "123456")
			case "shrunk":
				write(t, folder, f.path, "1234")
			case "fifo":
				check(t, os.Remove(at(f.path)))
				check(t, syscall.Mkfifo(at(f.path), 0o600))
			}
			if !yield(f, nil) {
				return
			}
		}
		_ = yield(file{path: "unreadable folder"}, errors.New("permission denied")) && yield(file{path: long}, nil)
	}
	code, stdout, stderr := sum(t.Context(), openRoot(t, folder), files)
	const five = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
	if want := five + "  good\n" + five + "  good too\n"; code != 1 || stdout != want {
		t.Errorf("exit code %d, manifest %q", code, stdout)
	}
	for _, want := range []string{
		`"gone\n": no such file or directory`,
		`"grown": its size has changed since it was found with 5 bytes`,
		`"shrunk": its size has changed since it was found with 5 bytes`,
		`"fifo": no longer a regular file`,
		`"unreadable folder": permission denied`,
		`task is too large`,
		"\n7 tasks, 6 failures, ",
	} {
		if strings.Count(stderr, want) != 1 {
			t.Errorf("stderr does not contain %q exactly once", want)
		}
	}
	if lines := strings.Count(stderr, "\n"); lines != 7 {
		t.Errorf("stderr has %d lines", lines)
	}
}

func TestPanickingTaskIsAFailure(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := sum(t.Context(), nil, only(file{path: "a"})) // nil root: a nil dereference
	if code != 1 || stdout != "" || !strings.Contains(stderr, "\"a\": the task panicked\n1 tasks, 1 failures, ") {
		t.Errorf("exit code %d, manifest %q, %s", code, stdout, stderr)
	}
}

func TestInterruptedLeavesNoManifest(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write(t, folder, "small", "")
	files := only(file{path: "small"}, hugeFile(t, folder))
	ctx, cancel := context.WithCancel(t.Context())
	code, stdout, stderr := sum(ctx, openRoot(t, folder), func(yield func(file, error) bool) {
		files(yield)
		cancel()
	})
	if code != 130 || stdout != "" || !strings.Contains(stderr, "interrupted after ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit code %d, manifest %q, %s", code, stdout, stderr)
	}
	ctx, cancel = context.WithCancel(t.Context())
	code, stdout, stderr = sum(ctx, nil, func(func(file, error) bool) { cancel() })
	if code != 130 || stdout != "" {
		t.Errorf("interrupted before it found a file: exit code %d, manifest %q, %s", code, stdout, stderr)
	}
	if code, stdout, _ := runIn(ctx, folder); code != 130 || stdout != "" {
		t.Errorf("interrupted before it began: exit code %d, manifest %q", code, stdout)
	}
}

func TestFullDiskIsAnError(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write(t, folder, "file", "")
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{folder}, "", fullDisk{}, &stderr); code != 1 || !strings.Contains(stderr.String(), "write manifest: "+syscall.ENOSPC.Error()) {
		t.Errorf("exit code %d, %s", code, stderr.String())
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestOwnOutputIsNotListed(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write(t, folder, "file", "")
	var outputs [2]*os.File
	for i := range outputs {
		f, err := os.Create(filepath.Join(folder, fmt.Sprint("output", i)))
		check(t, err)
		defer f.Close()
		outputs[i] = f
	}
	if code := run(t.Context(), []string{folder}, "", outputs[0], outputs[1]); code != 0 {
		t.Errorf("exit code %d", code)
	}
	manifest, err := os.ReadFile(outputs[0].Name())
	check(t, err)
	if strings.Count(string(manifest), "\n") != 1 || !strings.HasSuffix(string(manifest), "  file\n") {
		t.Errorf("manifest %q", manifest)
	}
}

func TestSignalEndsTheProgram(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			hugeFile(t, folder)
			cmd := program(t, folder)
			var stdout bytes.Buffer
			cmd.Stdout = &stdout
			stderr, err := cmd.StderrPipe()
			check(t, err)
			check(t, cmd.Start())
			lines := bufio.NewScanner(stderr)
			for lines.Scan() && !strings.HasPrefix(lines.Text(), "0/1 files 0.0 MB [---") {
			}
			check(t, cmd.Process.Signal(signal))
			rest := ""
			for lines.Scan() {
				rest += lines.Text()
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 130 || stdout.Len() > 0 || !strings.HasSuffix(rest, "interrupted after 0 of 1 tasks; no manifest") {
				t.Errorf("%v, manifest %q, %q", cmd.ProcessState, stdout.String(), rest)
			}
		})
	}
}

func TestClosedOutputIsAnError(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write(t, folder, "file", "")
	r, w, err := os.Pipe()
	check(t, err)
	check(t, r.Close())
	defer w.Close()
	cmd := program(t, folder)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "broken pipe") {
		t.Errorf("%v, %s", cmd.ProcessState, stderr.String())
	}
}

// progressLines matches the progress that is printed after a second. A test may take that long on a busy machine.
var progressLines = regexp.MustCompile(`(?m)^\d+/\d+\+? files .*\n`)

// runIn calls run as main does. It removes the progress from standard error.
func runIn(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(ctx, args, "", &out, &errs)
	return code, out.String(), progressLines.ReplaceAllString(errs.String(), "")
}

// sum calls sumAll with the files that the test chooses.
func sum(ctx context.Context, root *os.Root, files iter.Seq2[file, error]) (code int, stdout, stderr string) {
	embedded, err := newRoute("")
	if err != nil {
		panic(err)
	}
	var out, errs bytes.Buffer
	code = sumAll(ctx, root, embedded, files, &out, &errs)
	return code, out.String(), progressLines.ReplaceAllString(errs.String(), "")
}

func only(files ...file) iter.Seq2[file, error] {
	return func(yield func(file, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}
}

// hugeFile makes a file that takes no space on disk and hours to read.
func hugeFile(t *testing.T, folder string) file {
	t.Helper()
	f := file{path: "huge", size: 1 << 42}
	write(t, folder, f.path, "")
	check(t, os.Truncate(filepath.Join(folder, f.path), f.size))
	return f
}

// program returns the command as a process of its own.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "COLUMNS=", "DISPATCHER_AMQP_CON=")
	return cmd
}

// sha256sum runs the real program.
func sha256sum(t *testing.T, folder string, stdin io.Reader, args ...string) string {
	t.Helper()
	tool, err := exec.LookPath("sha256sum")
	if err != nil {
		t.Skip("needs sha256sum (GNU coreutils)")
	}
	cmd := exec.CommandContext(t.Context(), tool, args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stderr = folder, stdin, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sha256sum: %v\n%s%s", err, out, stderr.String())
	}
	return string(out)
}

func openRoot(t *testing.T, folder string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(folder)
	check(t, err)
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func write(t *testing.T, folder, path, content string) {
	t.Helper()
	name := filepath.Join(folder, path)
	check(t, os.MkdirAll(filepath.Dir(name), 0o700))
	check(t, os.WriteFile(name, []byte(content), 0o600))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
