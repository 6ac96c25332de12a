//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package bolt

import "os"

// unlock does nothing: on these systems the lock of a damaged file ends with its handle or with the process.
func unlock(*os.File) {}
