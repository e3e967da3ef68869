package message

// Acceptor receives the exchanges of one downstream connection. A server codec
// calls Accept when a request head begins; the returned Receiver gets its
// events. The Acceptor must not keep s after the exchange has ended.
type Acceptor interface {
	Accept(s Sender) Receiver
	// OnConnClosed is called once, after every exchange has ended or was reset.
	OnConnClosed()
}

// ClientConn is the client side of one upstream connection, HTTP/1.1 with at
// most one exchange at a time or HTTP/2 with many. Pools hold these.
type ClientConn interface {
	// Open starts an exchange whose response events go to r. It may only be
	// called while Capacity is above 0.
	Open(r Receiver) Sender
	// Capacity is the number of exchanges that may be opened now. It may fall
	// without notice (GOAWAY, SETTINGS).
	Capacity() int
	// Active is the number of exchanges in flight.
	Active() int
	// Used is the number of exchanges opened so far; 0 means that the
	// connection is fresh, which decides whether a failure is a stale-pool race.
	Used() int
	// Close ends the connection once idle (graceful) or at once.
	Close(graceful bool)
	// Conn describes the connection.
	Conn() *Conn
}

// ClientObserver is told what happens to an upstream connection as a whole.
type ClientObserver interface {
	// OnCapacity says that Capacity rose (an exchange ended, SETTINGS came).
	OnCapacity(c ClientConn)
	// OnClosed says that the connection is gone; it is the last call. Exchanges
	// in flight have been reset before.
	OnClosed(c ClientConn, code ResetCode, err error)
}

// Transport is an ordered byte stream that belongs to one loop: a TCP socket,
// or TLS over one. Codecs are built on it.
type Transport interface {
	// SetHandler installs the codec; bytes already read are delivered to it in
	// the same batch.
	SetHandler(h TransportHandler)
	// Write appends p to the output, which is flushed at the end of the batch.
	// It never blocks and never fails; errors arrive by OnClosed.
	Write(p []byte)
	// Buffered is the number of bytes written but not yet accepted by the kernel.
	Buffered() int
	// OverHigh says that Buffered is above the high watermark.
	OverHigh() bool
	// WantDrained asks for OnDrained once Buffered is below the low watermark,
	// though it never was above the high one: a codec that holds data back goes
	// on then.
	WantDrained()
	// PauseRead stops (true) or resumes (false) reading from the peer.
	PauseRead(on bool)
	// CloseWrite sends FIN (TLS: close_notify, then FIN) after what is buffered.
	CloseWrite()
	// Close flushes for a bounded time, then closes.
	Close()
	// Abort closes at once, with RST where the kernel allows.
	Abort()
	// Conn describes the connection; TLS is filled in once the handshake is done.
	Conn() *Conn
}

// TransportHandler is the consumer of a Transport's input.
type TransportHandler interface {
	// OnBytes delivers input and returns how many bytes were consumed. The rest
	// is kept and delivered again, in front of the next bytes. p is borrowed.
	OnBytes(p []byte) int
	// OnEOF says that the peer sent FIN; writing may go on.
	OnEOF()
	// OnDrained says that output fell below the low watermark after OverHigh or
	// WantDrained.
	OnDrained()
	// OnClosed is the last call; err is nil after an orderly close of both sides.
	OnClosed(err error)
}
