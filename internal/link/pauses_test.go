package link

import (
	"testing"
	"testing/synctest"
	"time"
)

// The backoff library's own limit of 15 minutes would end a reconnect loop in silence.
func TestPausesNeverEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, pauses := range []interface{ NextBackOff() time.Duration }{
			reconnectPauses(0), reconnectPauses(time.Second), RetryPauses(),
		} {
			for began := time.Now(); time.Since(began) < 24*time.Hour; {
				pause := pauses.NextBackOff()
				if pause < 0 || pause > 45*time.Second {
					t.Fatalf("a pause of %v after %v", pause, time.Since(began))
				}
				<-time.After(pause + time.Second)
			}
		}
	})
}

func TestFixedIntervalsDifferByAFifth(t *testing.T) {
	t.Parallel()
	pauses := reconnectPauses(10 * time.Second)
	seen := map[time.Duration]bool{}
	for range 1000 {
		pause := pauses.NextBackOff()
		if pause < 8*time.Second || pause > 12*time.Second {
			t.Fatalf("a pause of %v", pause)
		}
		seen[pause] = true
	}
	if len(seen) < 900 {
		t.Errorf("%d different pauses of 1000: programs would come back together", len(seen))
	}
}

func TestGrowingPausesStartSmallAndStayBelowHalfAMinute(t *testing.T) {
	t.Parallel()
	pauses := reconnectPauses(0)
	if first := pauses.NextBackOff(); first > 500*time.Millisecond {
		t.Errorf("the first pause is %v", first)
	}
	var most time.Duration
	for range 1000 {
		most = max(most, pauses.NextBackOff())
	}
	if most < 20*time.Second || most > 30*time.Second {
		t.Errorf("the longest of 1000 pauses is %v, want nearly 30 s", most)
	}
}
