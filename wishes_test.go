package dispatcher

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/internal/verdict"
)

func TestWishesSurviveWrapping(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for want, err := range map[verdict.Wish]error{
		{}:                            boom,
		{Kind: verdict.WishPermanent}: fmt.Errorf("a: %w", errors.Join(Discard(boom), RetryAfter(1, boom), Permanent(boom))),
		{Kind: verdict.WishRetryAfter, After: time.Second}:     fmt.Errorf("b: %w", errors.Join(boom, RetryAfter(time.Second, boom))),
		{Kind: verdict.WishDiscard}:                            fmt.Errorf("c: %w", RetryAfter(time.Hour, fmt.Errorf("d: %w", Discard(boom)))),
		{Kind: verdict.WishRetryAfter, After: 2 * time.Second}: RetryAfter(2*time.Second, nil),
	} {
		if got := verdict.WishOf(err); got != want {
			t.Errorf("%v: got %+v, want %+v", err, got, want)
		}
		if want.After != 2*time.Second && !errors.Is(err, boom) {
			t.Errorf("%v hides its cause", err)
		}
	}
	// The value of a panic may be an error with a wish.
	if got := verdict.WishOf(&PanicError{Value: Permanent(boom)}); got.Kind != verdict.WishPermanent {
		t.Errorf("a panic with a permanent error: got %+v", got)
	}
	if Permanent(nil) != nil || Discard(nil) != nil {
		t.Error("nil became an error")
	}
	if RetryAfter(0, nil).Error() == "" {
		t.Error("the error has no text")
	}
}
