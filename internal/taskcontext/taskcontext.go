// Package taskcontext has the key of the context that a task function receives. Package dispatchertest needs it too, and
// users must not see it.
package taskcontext

// Key is the key under which the context of a task has a *dispatcher.TaskInfo.
type Key struct{}
