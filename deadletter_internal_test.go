package dispatcher

import (
	"testing"

	"github.com/seed-416683c9/dispatcher/internal/link"
	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

// The root repeats these words to document them for users.
func TestTheRoomsUseTheRootsWords(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		ReasonFailed: verdict.ReasonFailed, ReasonPermanent: verdict.ReasonPermanent, ReasonTimeout: verdict.ReasonTimeout, ReasonExpired: verdict.ReasonExpired,
		ReasonUnknownTask: verdict.ReasonUnknownTask, ReasonCrashLoop: verdict.ReasonCrashLoop,
		ReasonBadArguments: verdict.ReasonBadArguments, ReasonMalformed: verdict.ReasonMalformed,
		string(StateConnected): string(link.Connected), string(StateConnecting): string(link.Connecting),
		string(StateGivenUp): string(link.GivenUp), string(StateClosed): string(link.Closed),
	} {
		if got != want {
			t.Errorf("a room has %q, and the root has %q", got, want)
		}
	}
}
