package bolt_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-416683c9/dispatcher/outbox/bolt"
)

func init() { children["tmpfs"] = tmpfsChild }

// tmpfsChild fills its own file system of two megabytes. The kernel returns ENOSPC.
func tmpfsChild(dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	path := filepath.Join(dir, "outbox.db")
	o, err := bolt.Open(path, bolt.Config{})
	if err != nil {
		return err
	}
	return fill(o, path, func() error { return syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m") })
}

func TestAFullDiskIsAClearErrorAndLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	last := runApart(t, "tmpfs", dir)
	switch {
	case strings.Contains(last, "mount: operation not permitted"):
		t.Skip("this process may not mount a file system, not even in a namespace of its own")
	case !strings.HasPrefix(last, "ok "):
		t.Error(last)
	default:
		t.Log(last)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("the mount is visible outside of its namespace: %v, %v", names, err)
	}
}

// runApart is like run, but the child has namespaces of its own. There it may mount a file system without being root
// outside.
func runApart(t *testing.T, part, arg string) string {
	t.Helper()
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+part+":"+arg)
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if err != nil {
		if len(out) == 0 {
			return "mount: operation not permitted (" + err.Error() + ")"
		}
		return string(out) + " " + err.Error()
	}
	return string(out)
}
