package dispatcher

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// The root repeats these words to document them for users.
func TestVerdictsUseTheRootsWords(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		ReasonFailed: verdict.ReasonFailed, ReasonPermanent: verdict.ReasonPermanent, ReasonTimeout: verdict.ReasonTimeout, ReasonExpired: verdict.ReasonExpired,
		ReasonUnknownTask: verdict.ReasonUnknownTask, ReasonCrashLoop: verdict.ReasonCrashLoop,
	} {
		if got != want {
			t.Errorf("package verdict has %q, and the root has %q", got, want)
		}
	}
}
