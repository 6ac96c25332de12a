package engine

// turn makes sure that a server runs one suspect at a time, so that it is known which task ended the process. It holds
// one value while a suspect is looked for or runs.
//
// The way of a suspect: patrol offers it to the slots. A free slot that takes the offer acquires the turn, unless
// another worker has it. In that case patrol waits for the turn, and passes it along with its next offer. The slot
// fetches the suspect and calls its function. It releases the turn, and answers patrol, when there was no suspect, or
// when the call has ended, was abandoned or stepped aside.
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
