// Package taskcontext lets package dispatchertest make the context that a worker gives to a task function. It is
// internal so that package dispatcher need not export what only tests use.
package taskcontext

import "context"

// New returns ctx with a task. info is a dispatcher.TaskInfo. The error says which header could not travel. Package
// dispatcher sets New when it is initialized.
var New func(ctx context.Context, info any) (context.Context, error)
