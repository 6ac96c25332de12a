package dispatcher

import "testing"

// A classic queue of RabbitMQ marks all that it holds as redelivered when its node was killed.
func TestALongRowOfMarksIsNotBelieved(t *testing.T) {
	t.Parallel()
	f := &feed{credible: 20}
	believed := 0
	for range 1000 {
		if f.believes() {
			believed++
		}
	}
	if believed != 20 {
		t.Errorf("believed %d of 1,000 in a row, want 20", believed)
	}
	f.streak.Store(0) // as one without a mark does
	if !f.believes() {
		t.Error("the first of the next row is not believed")
	}
}
