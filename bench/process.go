package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of CPU times in /proc: Linux always shows hundredths of a second.
const tick = 10 * time.Millisecond

// cpuOfSelf returns the CPU time that this process has used.
func cpuOfSelf() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpuOf returns the CPU time that a process, its children and its children that have ended have used. It reports false
// if the process is unknown.
func cpuOf(pid int) (time.Duration, bool) {
	fields := statOf(pid)
	if fields == nil {
		return 0, false
	}
	used := number(fields[11]) + number(fields[12]) + number(fields[13]) + number(fields[14])
	for _, child := range childrenOf(pid) {
		if fields := statOf(child); fields != nil {
			used += number(fields[11]) + number(fields[12])
		}
	}
	return time.Duration(used) * tick, true
}

// cpuOfMachine returns the CPU time that all programs have used.
func cpuOfMachine() time.Duration {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	used := 0
	for i, field := range strings.Fields(line) {
		if i >= 1 && i <= 7 && i != 4 && i != 5 { // neither idle nor waiting for a disk
			used += number(field)
		}
	}
	return time.Duration(used) * tick
}

// statOf returns the fields of /proc/PID/stat after the command, so that the first is the state, or nil.
func statOf(pid int) []string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	end := bytes.LastIndexByte(text, ')')
	if pid == 0 || err != nil || end < 0 {
		return nil
	}
	if fields := strings.Fields(string(text[end+1:])); len(fields) > 15 {
		return fields
	}
	return nil
}

func childrenOf(pid int) []int {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "task", strconv.Itoa(pid), "children"))
	var children []int
	for _, field := range strings.Fields(string(text)) {
		children = append(children, number(field))
	}
	return children
}

// parentOf returns 0 if the process is unknown.
func parentOf(pid int) int {
	if fields := statOf(pid); fields != nil {
		return number(fields[1])
	}
	return 0
}

// memoryOf returns a line of /proc/PID/status in MiB: VmHWM is the most memory that a process has had, VmRSS what it has
// now.
func memoryOf(pid int, name string) float64 {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	for line := range strings.Lines(string(text)) {
		if value, is := strings.CutPrefix(line, name+":"); is {
			return float64(number(strings.TrimSuffix(strings.TrimSpace(value), " kB"))) / 1024
		}
	}
	return none
}

// forgetPeak makes VmHWM of this process start again from what it has now. It reports whether that was possible.
func forgetPeak() bool {
	return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) == nil
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}
