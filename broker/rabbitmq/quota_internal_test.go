package rabbitmq

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// No part of a quota is lost when a waiting caller gives up, even at the moment in which it gets the part.
func TestQuotaLosesNoPart(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	p := &publisher{s: &session{dead: make(chan struct{})}, quotas: make(map[destination]*quota)}
	to := destination{target: target{key: "q"}, settle: true} // the smaller quota
	var all sync.WaitGroup
	var mu sync.Mutex
	served, gaveUp := 0, 0
	for i := range 8 * firstSettleQuota {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		all.Go(func() {
			for range 50 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(random.IntN(400))*time.Microsecond)
				part, err := p.reserve(ctx, to)
				if err == nil {
					<-ctx.Done() // others give up at the moment in which this part is given back
					p.mu.Lock()
					if q := p.quotas[to]; q.used > q.allowed {
						t.Errorf("%d of %d are used", q.used, q.allowed)
					}
					p.restore(part, false)
					p.mu.Unlock()
				}
				cancel()
				mu.Lock()
				if err == nil {
					served++
				} else {
					gaveUp++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if served == 0 || gaveUp == 0 {
		t.Errorf("%d were served and %d gave up, want some of each", served, gaveUp)
	}
	if q := p.quotas[to]; q != nil {
		t.Errorf("%d parts are still used, and %d wait", q.used, q.waiting.Len())
	}
}
