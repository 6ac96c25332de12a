package engine

// turn makes sure that a server runs one suspect at a time, so that it is known which task ended the process. It holds
// one value while a suspect is looked for or runs.
//
// The rule of a suspect's way: patrol offers a suspect to the slots; a free slot that takes the offer acquires the turn
// and fetches; it answers patrol, and releases the turn, when there was none or when its call has ended.
type turn chan struct{}

// tryAcquire takes the turn and reports true, unless somebody has it.
func (t turn) tryAcquire() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

// acquire waits for the turn. It returns false if done is closed first.
func (t turn) acquire(done <-chan struct{}) bool {
	select {
	case t <- struct{}{}:
		return true
	case <-done:
		return false
	}
}

func (t turn) release() { <-t }
