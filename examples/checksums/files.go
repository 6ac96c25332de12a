package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"
)

// file is a regular file, with its path relative to the folder and its size when it was found.
type file struct {
	path string
	size int64
}

// walk yields the regular files below folder, except those in except and everything named .git. It yields unreadable
// entries with an error and goes on. It ends early if ctx ends.
func walk(ctx context.Context, folder string, except []os.FileInfo) iter.Seq2[file, error] {
	return func(yield func(file, error) bool) {
		visit := func(name string, entry fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return fs.SkipAll
			}
			path, relErr := filepath.Rel(folder, name)
			f := file{path: path}
			switch err = errors.Join(err, relErr); {
			case err != nil:
			case entry.Name() == ".git" && path != ".":
				if entry.IsDir() {
					return fs.SkipDir
				}
				return nil
			case !entry.Type().IsRegular(): // directories, symbolic links, fifos, devices, …
				return nil
			default:
				info, infoErr := entry.Info()
				if err = infoErr; err == nil {
					if f.size = info.Size(); isOneOf(info, except) {
						return nil
					}
				}
			}
			if !yield(f, err) {
				return fs.SkipAll
			}
			return nil
		}
		// The slash makes it walk a folder that is itself a symbolic link.
		// visit returns no error, so there is none here.
		_ = filepath.WalkDir(folder+"/", visit)
	}
}

// outputs returns the files that the program writes to: "checksums > SHA256SUMS" must not list its own output.
func outputs(writers ...io.Writer) (infos []os.FileInfo) {
	for _, w := range writers {
		if f, ok := w.(*os.File); ok {
			if info, err := f.Stat(); err == nil {
				infos = append(infos, info)
			}
		}
	}
	return infos
}

func isOneOf(info os.FileInfo, others []os.FileInfo) bool {
	for _, other := range others {
		if os.SameFile(info, other) {
			return true
		}
	}
	return false
}

type digest [sha256.Size]byte

// hashFile returns the SHA-256 of a file. The file must still be regular and have this size. It ends with ctx.
func hashFile(ctx context.Context, root *os.Root, path string, size int64) (sum digest, err error) {
	// If a fifo has taken the file's place, opening it without O_NONBLOCK would wait for a writer.
	f, err := root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return sum, err
	} else if !info.Mode().IsRegular() {
		return sum, errors.New("no longer a regular file")
	}
	hash := sha256.New()
	n, err := io.Copy(hash, io.LimitReader(reader{ctx, f}, size+1)) // one more byte detects growth
	if err != nil {
		return sum, err
	}
	if n != size {
		return sum, fmt.Errorf("its size has changed since it was found with %d bytes", size)
	}
	return digest(hash.Sum(nil)), nil
}

// reader reads from r until ctx ends.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// encodePath encodes a path as a string argument. A string argument must be valid UTF-8, but a file name on Unix may
// hold any bytes but NUL and slash. Paths that are not UTF-8 are therefore encoded as a NUL, which no path begins with,
// and hexadecimal digits.
func encodePath(path string) string {
	if utf8.ValidString(path) {
		return path
	}
	return "\x00" + hex.EncodeToString([]byte(path))
}

func decodePath(encoded string) (string, error) {
	digits, isHex := strings.CutPrefix(encoded, "\x00")
	if !isHex {
		return encoded, nil
	}
	path, err := hex.DecodeString(digits)
	return string(path), err
}

// reason returns err without the name of the file, which is printed beside it.
func reason(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}
