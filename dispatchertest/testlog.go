package dispatchertest

import (
	"fmt"
	"sync"
	"testing"
)

// testLog is a dispatcher.Log that writes to a test. After the test has ended it drops what comes: a call that outlived
// its worker may still log, and a test panics over that.
type testLog struct {
	mu sync.Mutex
	tb testing.TB // nil after end
}

func (l *testLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tb = nil
}

func (l *testLog) add(level, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tb != nil {
		l.tb.Log(level + ": " + text)
	}
}

func (l *testLog) Info(args ...any)             { l.add("info", fmt.Sprint(args...)) }
func (l *testLog) Infof(f string, args ...any)  { l.add("info", fmt.Sprintf(f, args...)) }
func (l *testLog) Debug(...any)                 {}
func (l *testLog) Debugf(string, ...any)        {}
func (l *testLog) Warn(args ...any)             { l.add("warn", fmt.Sprint(args...)) }
func (l *testLog) Warnf(f string, args ...any)  { l.add("warn", fmt.Sprintf(f, args...)) }
func (l *testLog) Error(args ...any)            { l.add("error", fmt.Sprint(args...)) }
func (l *testLog) Errorf(f string, args ...any) { l.add("error", fmt.Sprintf(f, args...)) }
