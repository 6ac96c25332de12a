package systemtest_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/seed-416683c9/dispatcher"
)

// recorder is a Log that keeps its lines.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) add(level, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, level+": "+text)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "\n")
}

func (r *recorder) Info(args ...interface{})             { r.add("info", fmt.Sprint(args...)) }
func (r *recorder) Infof(f string, args ...interface{})  { r.add("info", fmt.Sprintf(f, args...)) }
func (r *recorder) Debug(args ...interface{})            { r.add("debug", fmt.Sprint(args...)) }
func (r *recorder) Debugf(f string, args ...interface{}) { r.add("debug", fmt.Sprintf(f, args...)) }
func (r *recorder) Warnf(f string, args ...interface{})  { r.add("warn", fmt.Sprintf(f, args...)) }
func (r *recorder) Error(args ...interface{})            { r.add("error", fmt.Sprint(args...)) }
func (r *recorder) Errorf(f string, args ...interface{}) { r.add("error", fmt.Sprintf(f, args...)) }

// errorsOnly drops every line but errors, for tests that would log thousands of lines.
type errorsOnly struct{ *recorder }

func (errorsOnly) Info(...interface{})          {}
func (errorsOnly) Infof(string, ...interface{}) {}
func (errorsOnly) Warnf(string, ...interface{}) {}

// quiet drops every line.
var quiet = dispatcher.SlogLogger(slog.New(slog.DiscardHandler))
