package api

import (
	"errors"
	"net/http"
)

// Error is a failure that the caller can act on, as it crosses the socket.
type Error struct {
	// Code is one of the Code constants.
	Code    string `json:"code"`
	Message string `json:"message"`
	// Hint is the next step, if there is one.
	Hint string `json:"hint,omitempty"`
}

// The codes of Error.
const (
	CodeInvalid     = "invalid"
	CodeNotFound    = "not-found"
	CodeForbidden   = "forbidden"
	CodeUnavailable = "unavailable"
	CodeInternal    = "internal"
)

// Error returns the message and, after a colon, the hint.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ": " + e.Hint
}

// IsNotFound reports whether err says that the thing asked for does not exist.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == CodeNotFound
}

func (e *Error) httpStatus() int {
	switch e.Code {
	case CodeInvalid:
		return http.StatusBadRequest
	case CodeNotFound:
		return http.StatusNotFound
	case CodeForbidden:
		return http.StatusForbidden
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
