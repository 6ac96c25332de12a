package engine

import (
	"sync"
	"time"
)

// State describes a shift at one moment, for Health.
type State struct {
	Consuming bool
	Running   int       // calls under way, including abandoned ones
	Abandoned int       // calls whose slot was given to others
	Stuck     int       // deliveries whose verdict cannot be written now
	Held      int       // deliveries that wait for another call of their task
	Prefetch  int       // how many deliveries may be unsettled now
	Barred    error     // why no suspect can be fetched; nil = the last fetch succeeded
	Err       error     // the last problem with consuming, settling or suspects
	ErrAt     time.Time // when Err occurred
}

// state holds the part of State that is not counted elsewhere. mu guards it, and is never held across I/O.
type state struct {
	mu sync.Mutex
	is State
}

// note records whether the worker consumes, and the last problem.
func (s *state) note(consuming bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is.Consuming = consuming
	if err != nil {
		s.failed(err)
	}
}

// failed records the last problem. The caller holds mu.
func (s *state) failed(err error) { s.is.Err, s.is.ErrAt = err, time.Now() }

// bar records why no suspect can be fetched. A nil error means that suspects can be fetched.
func (s *state) bar(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is.Barred = why
	if why != nil {
		s.failed(why)
	}
}

// stuckBy adds n to the number of deliveries that cannot be settled now. It records why, if not nil.
func (s *state) stuckBy(n int, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is.Stuck += n
	if why != nil {
		s.failed(why)
	}
}

// prefetches records the present prefetch.
func (s *state) prefetches(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.is.Prefetch = n
}

// stuck returns how many deliveries cannot be settled now.
func (s *state) stuck() int { return s.now().Stuck }

func (s *state) now() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.is
}
